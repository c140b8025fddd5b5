//! The placements that are worth a look on a machine.
//!
//! *Invariant:* a function of machine, models and measured classes: the same candidates in the same order everywhere.

use std::collections::BTreeSet;

use crate::context::PlanContext;
use crate::cost::{CostModel, UnitClass};
use crate::mode::{DraftTokens, LOOKUP_NGRAM_DEFAULT, Mode};
use crate::plan::UnitSpec;
use crate::role::ModelRole;

use super::compose::Composition;
use super::cuts;

/// Core counts of one cluster that are all looked at up to here; beyond it by steps.
const CORES_ALL: usize = 6;
/// Units over which a target is cut at most.
const CUT_MAX: usize = 4;

/// Units to put stages on.
#[derive(Clone, Debug)]
pub struct Space<'a> {
    /// Whole cores of each cluster, best first; the fastest cluster first.
    clusters: Vec<Vec<usize>>,
    /// Adapters.
    adapters: Vec<UnitSpec>,
    /// Those of them that are hardware, and so another unit than the cores.
    gpus: Vec<UnitSpec>,
    /// Units that are not to be used.
    lost: BTreeSet<UnitSpec>,
    model: &'a CostModel,
}

impl<'a> Space<'a> {
    /// Everything that the machine has. `model` says what stages take, for where to cut.
    pub fn new(context: &PlanContext, model: &'a CostModel) -> Self {
        let machine = &context.machine;
        let mut clusters: Vec<(u32, Vec<usize>)> = Vec::new();
        let mut seen = Vec::new();
        for id in machine.cores_best_first() {
            let core = machine.cores.iter().find(|core| core.id == id).expect("it is listed");
            if seen.contains(&core.physical) {
                continue;
            }
            seen.push(core.physical);
            match clusters.iter_mut().find(|(cluster, _)| *cluster == core.cluster) {
                Some((_, cores)) => cores.push(id),
                None => clusters.push((core.cluster, vec![id])),
            }
        }
        Self {
            clusters: clusters.into_iter().map(|(_, cores)| cores).collect(),
            adapters: machine.adapter_units().collect(),
            gpus: machine.gpus().collect(),
            lost: BTreeSet::new(),
            model,
        }
    }

    /// Without these units, and without others on the cores of one of them.
    pub fn without(self, lost: &BTreeSet<UnitSpec>) -> Self {
        Self { lost: lost.clone(), ..self }
    }

    fn is_lost(&self, spec: &UnitSpec) -> bool {
        self.lost.iter().any(|lost| match (spec, lost) {
            (UnitSpec::Cpu { cores }, UnitSpec::Cpu { cores: lost }) => {
                cores.iter().any(|core| lost.contains(core))
            }
            _ => spec == lost,
        })
    }

    /// Every placement: both models on one unit, one unit each, the target cut over several units.
    pub fn placements(&self, context: &PlanContext) -> Vec<Composition> {
        let layers = context.target.layers();
        let drafts = context.draft.is_some();
        let mut found = Vec::new();
        for unit in self.units() {
            found.push(Composition {
                draft: drafts.then_some(0),
                ..Composition::plain(unit, layers)
            });
        }
        let pairs = self.pairs();
        if drafts {
            for (target, draft) in &pairs {
                found.push(Composition {
                    units: vec![target.clone(), draft.clone()],
                    draft: Some(1),
                    ..Composition::plain(target.clone(), layers)
                });
            }
        }
        for row in self.rows(&pairs) {
            let specs: Vec<_> =
                row.iter().map(|spec| UnitClass::of(spec, &context.machine)).collect();
            let Some(target) = cuts::best(self.model, &specs, layers) else { continue };
            for unit in 0..row.len() {
                found.push(Composition {
                    mode: Mode::Plain,
                    units: row.clone(),
                    target: target.clone(),
                    draft: drafts.then_some(unit),
                });
                if !drafts {
                    break;
                }
            }
        }
        found.retain(|placement| !placement.units.iter().any(|unit| self.is_lost(unit)));
        found
    }

    /// Single units: some of the cores of each cluster, and each adapter.
    fn units(&self) -> Vec<UnitSpec> {
        let of = |cores: &Vec<usize>| {
            counts(cores.len()).into_iter().map(|n| cpu(&cores[..n])).collect::<Vec<_>>()
        };
        let cores = self.clusters.iter().flat_map(of);
        cores.chain(self.adapters.iter().cloned()).collect()
    }

    /// Two units that share nothing, in either order.
    fn pairs(&self) -> Vec<(UnitSpec, UnitSpec)> {
        let mut found = Vec::new();
        for cores in &self.clusters {
            for one in counts(cores.len()) {
                for other in counts(cores.len()) {
                    if one + other <= cores.len() {
                        found.push((cpu(&cores[..one]), cpu(&cores[cores.len() - other..])));
                    }
                }
            }
        }
        let mut rest: Vec<UnitSpec> = self.clusters.iter().map(|cores| cpu(cores)).collect();
        rest.extend(self.gpus.iter().cloned());
        for (i, one) in rest.iter().enumerate() {
            for other in rest.iter().skip(i + 1) {
                found.push((one.clone(), other.clone()));
                found.push((other.clone(), one.clone()));
            }
        }
        // The cores that an adapter's driver needs are best left to it.
        for cores in self.clusters.iter().filter(|cores| cores.len() > 1) {
            for gpu in &self.gpus {
                let most = cpu(&cores[..cores.len() - 1]);
                found.push((most.clone(), gpu.clone()));
                found.push((gpu.clone(), most));
            }
        }
        found
    }

    /// Rows of units over which a target may be cut.
    fn rows(&self, pairs: &[(UnitSpec, UnitSpec)]) -> Vec<Vec<UnitSpec>> {
        let mut rows: Vec<Vec<UnitSpec>> =
            pairs.iter().map(|(one, other)| vec![one.clone(), other.clone()]).collect();
        for cores in &self.clusters {
            for parts in 3..=CUT_MAX.min(cores.len()) {
                let each = cores.len() / parts;
                rows.push((0..parts).map(|i| cpu(&cores[i * each..(i + 1) * each])).collect());
            }
        }
        rows
    }
}

/// All core counts of a small cluster; of a large one the powers of two, all, and all but one.
fn counts(cores: usize) -> Vec<usize> {
    if cores <= CORES_ALL {
        return (1..=cores).collect();
    }
    let mut counts: Vec<usize> = (0..).map(|i| 1 << i).take_while(|n| *n < cores).collect();
    counts.extend([cores / 2, cores - 1, cores]);
    counts.sort_unstable();
    counts.dedup();
    counts
}

fn cpu(cores: &[usize]) -> UnitSpec {
    let mut cores = cores.to_vec();
    cores.sort_unstable();
    UnitSpec::Cpu { cores }
}

/// The modes that make sense on a placement.
pub fn modes(placement: &Composition, context: &PlanContext) -> Vec<Mode> {
    let draft_tokens = DraftTokens::Fixed(1);
    let mut modes = vec![Mode::Plain];
    modes.push(Mode::Lookup { draft_tokens: 1, ngram: LOOKUP_NGRAM_DEFAULT });
    let Some(draft) = placement.draft.filter(|_| context.shape(ModelRole::Draft).is_some()) else {
        return modes;
    };
    modes.push(Mode::Sequential { draft_tokens });
    let apart = placement.target.iter().all(|(unit, _)| *unit != draft);
    if apart {
        modes.extend((0..=2).map(|wait| Mode::Overlap { draft_tokens, wait }));
    }
    modes
}
