//! Where to cut a target over a row of units, so that a pass is quickest.
//!
//! *Invariant:* exact for times that add up over the stages; of equal cuts the first, which gives earlier units less.

use crate::cost::{CostModel, UnitClass};
use crate::role::ModelRole;

/// Layers of each unit in turn, at least one each; `None` if there are fewer layers than units, or parts were not
/// measured on one of them.
///
/// Dynamic programming over (unit, layers given out): the least time of a pass of the first units over the first layers.
pub fn best(model: &CostModel, row: &[UnitClass], layers: usize) -> Option<Vec<(usize, usize)>> {
    let parts = row.iter().map(|class| {
        let profile = model.profile(class)?;
        let parts = profile.roles.get(&ModelRole::Target)?.parts.clone()?;
        // The rows of a usual verification pass.
        const ROWS: u32 = 5;
        Some((parts.layer.at_ns(ROWS, 0), parts.base.at_ns(ROWS, 0), parts.head.at_ns(ROWS, 0)))
    });
    let parts: Vec<_> = parts.collect::<Option<_>>()?;
    if parts.is_empty() || layers < parts.len() {
        return None;
    }
    let stage = |unit: usize, count: usize, ends: bool| {
        let (layer, base, head) = parts[unit];
        layer * count as u64 + base + if ends { head } else { 0 }
    };
    // least[end]: time of the units so far over layers 0..end, and how many layers the last of them has.
    let mut least: Vec<Option<u64>> = (0..=layers).map(|end| (end == 0).then_some(0)).collect();
    let mut given: Vec<Vec<usize>> = Vec::new();
    for unit in 0..parts.len() {
        let mut next = vec![None; layers + 1];
        let mut counts = vec![0; layers + 1];
        for end in 1..=layers {
            for count in 1..=end {
                let Some(before) = least[end - count] else { continue };
                let time = before + stage(unit, count, end == layers);
                if next[end].is_none_or(|known| time < known) {
                    (next[end], counts[end]) = (Some(time), count);
                }
            }
        }
        least = next;
        given.push(counts);
    }
    least[layers]?;
    let (mut end, mut target) = (layers, Vec::new());
    for unit in (0..parts.len()).rev() {
        let count = given[unit][end];
        target.push((unit, count));
        end -= count;
    }
    target.reverse();
    Some(target)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::collections::BTreeMap;

    use super::best;
    use crate::cost::{
        AroundJobs, CostModel, MemoryDomain, PartsProfile, RoleProfile, TimeTable, UnitClass,
        UnitProfile,
    };
    use crate::role::ModelRole;

    /// Units whose layers take so long, with a head of 100.
    fn model(layer_ns: &[u64]) -> (CostModel, Vec<UnitClass>) {
        let table = |ns| TimeTable::by_rows(&[(1, ns)]).unwrap();
        let mut model = CostModel::default();
        for (index, &layer) in layer_ns.iter().enumerate() {
            let parts = PartsProfile { base: table(5), layer: table(layer), head: table(100) };
            let role = RoleProfile {
                layers: 6,
                verify: table(6 * layer + 105),
                fill: table(6 * layer + 105),
                draft_step: table(1),
                parts: Some(parts),
                scratch_bytes: 0,
            };
            let profile = UnitProfile {
                memory: MemoryDomain::Main,
                roles: BTreeMap::from([(ModelRole::Target, role)]),
                around: AroundJobs::default(),
                power_mw: 0,
            };
            model.units.insert(UnitClass::cores(index as u32, 1), profile);
        }
        let row = model.units.keys().cloned().collect();
        (model, row)
    }

    #[test]
    fn the_faster_unit_gets_all_layers_but_one() {
        let (model, row) = model(&[10, 30, 20]);
        assert_eq!(best(&model, &row, 6), Some(vec![(0, 4), (1, 1), (2, 1)]));
        assert_eq!(best(&model, &row[1..], 6), Some(vec![(0, 1), (1, 5)]));
    }

    #[test]
    fn a_row_longer_than_the_model_has_no_cut() {
        let (model, row) = model(&[10, 30, 20]);
        assert_eq!(best(&model, &row, 2), None);
        assert_eq!(best(&CostModel::default(), &row, 6), None);
    }
}
