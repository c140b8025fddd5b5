//! `/proc/cpuinfo`: what each CPU is called and which instructions it has.

use std::collections::BTreeMap;

/// One CPU as described there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Processor {
    /// Model name (x86) or name of the core (Arm).
    pub name: Option<String>,
    /// All flags or features, as the kernel calls them.
    pub features: Vec<String>,
}

/// Instruction sets that kernels here may choose by, as the kernel calls them.
const RELEVANT: &[&str] = &[
    "avx",
    "f16c",
    "fma",
    "avx2",
    "avx_vnni",
    "avx512f",
    "avx512bw",
    "avx512_vnni",
    "amx_int8",
    "asimd",
    "asimdhp",
    "asimddp",
    "i8mm",
    "bf16",
    "sve",
    "sve2",
];

/// Arm's cores by part number (implementer 0x41).
const ARM_CORES: &[(u32, &str)] = &[
    (0xd03, "Cortex-A53"),
    (0xd04, "Cortex-A35"),
    (0xd05, "Cortex-A55"),
    (0xd07, "Cortex-A57"),
    (0xd08, "Cortex-A72"),
    (0xd09, "Cortex-A73"),
    (0xd0a, "Cortex-A75"),
    (0xd0b, "Cortex-A76"),
    (0xd0c, "Neoverse-N1"),
    (0xd0d, "Cortex-A77"),
    (0xd40, "Neoverse-V1"),
    (0xd41, "Cortex-A78"),
    (0xd42, "Cortex-A78AE"),
    (0xd44, "Cortex-X1"),
    (0xd46, "Cortex-A510"),
    (0xd47, "Cortex-A710"),
    (0xd48, "Cortex-X2"),
    (0xd49, "Neoverse-N2"),
    (0xd4b, "Cortex-A78C"),
    (0xd4d, "Cortex-A715"),
    (0xd4e, "Cortex-X3"),
    (0xd4f, "Neoverse-V2"),
    (0xd80, "Cortex-A520"),
    (0xd81, "Cortex-A720"),
];

/// Reads the file: CPUs by number. Lines that make no sense are skipped.
pub fn parse_cpuinfo(text: &str) -> BTreeMap<usize, Processor> {
    let mut processors = BTreeMap::new();
    for block in text.split("\n\n") {
        let fields: BTreeMap<&str, &str> = block
            .lines()
            .filter_map(|line| line.split_once(':'))
            .map(|(key, value)| (key.trim(), value.trim()))
            .collect();
        let Some(cpu) = fields.get("processor").and_then(|n| n.parse().ok()) else { continue };
        let features = fields.get("flags").or(fields.get("Features")).copied().unwrap_or_default();
        let processor = Processor {
            name: fields.get("model name").map(|&n| n.to_owned()).or_else(|| arm_core(&fields)),
            features: features.split_whitespace().map(str::to_owned).collect(),
        };
        processors.insert(cpu, processor);
    }
    processors
}

fn arm_core(fields: &BTreeMap<&str, &str>) -> Option<String> {
    let hex = |key| u32::from_str_radix(fields.get(key)?.strip_prefix("0x")?, 16).ok();
    let (implementer, part) = (hex("CPU implementer")?, hex("CPU part")?);
    let known = ARM_CORES.iter().find(|(number, _)| (implementer, part) == (0x41, *number));
    Some(known.map_or_else(
        || format!("core {part:#x} of implementer {implementer:#x}"),
        |(_, name)| (*name).to_owned(),
    ))
}

/// The relevant instruction sets that all of these processors have.
pub(super) fn common_instructions<'a>(
    processors: impl Iterator<Item = &'a Processor> + Clone,
) -> Vec<String> {
    let all_have = |name: &str| processors.clone().all(|p| p.features.iter().any(|f| f == name));
    if processors.clone().next().is_none() {
        return Vec::new();
    }
    RELEVANT.iter().filter(|name| all_have(name)).map(|&name| name.to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arm_cores_go_by_their_part_number() {
        let text = "processor\t: 0\nFeatures\t: fp asimd asimddp\nCPU implementer\t: 0x41\nCPU part\t: 0xd05\n\n\
                    processor\t: 4\nFeatures\t: fp asimd asimddp i8mm\nCPU implementer\t: 0x61\nCPU part\t: 0x022\n\n\
                    Hardware : board\n";
        let found = parse_cpuinfo(text);
        let names: Vec<_> = found.iter().map(|(n, p)| (*n, p.name.as_deref())).collect();
        let other = "core 0x22 of implementer 0x61";
        assert_eq!(names, [(0, Some("Cortex-A55")), (4, Some(other))]);
        assert_eq!(common_instructions(found.values()), ["asimd", "asimddp"]);
    }

    #[test]
    fn x86_says_its_model() {
        let text = "processor : 1\nmodel name : AMD EPYC\nflags : fpu avx avx2 fma\n";
        let processor = &parse_cpuinfo(text)[&1];
        assert_eq!(processor.name.as_deref(), Some("AMD EPYC"));
        assert_eq!(common_instructions([processor].into_iter()), ["avx", "fma", "avx2"]);
    }
}
