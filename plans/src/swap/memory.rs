//! What a swap needs while both plans are there: said before it starts, and refused if it is not free.
//!
//! *Invariant:* counts what is installed beside the running plan, in the memory where its unit keeps it; a stage that
//! stays is not counted.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::SwapError;
use crate::check::memory::{Pool, pool, pool_name};
use crate::diff::Installed;
use crate::machine::Machine;
use crate::plan::PartitionPlan;

/// Extra bytes of one memory while a swap goes on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Extra {
    /// Which memory.
    pub place: String,
    /// Bytes to be installed beside the running plan.
    pub extra_bytes: u64,
    /// Bytes that are free there now.
    pub free_bytes: u64,
    /// Bytes that are given back at the end.
    pub freed_bytes: u64,
}

/// Extra bytes of every memory while a swap goes on; nothing if it installs nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct SwapMemory(pub Vec<Extra>);

impl SwapMemory {
    /// The way from `installed`, which belongs to `running`, to `new`. Main memory counts as `now` measures it, an
    /// adapter's own memory as what the running plan leaves of it.
    pub(super) fn between(
        running: &PartitionPlan,
        installed: &BTreeSet<Installed>,
        new: &PartitionPlan,
        now: &Machine,
    ) -> Self {
        let wanted = new.installed();
        let extra = by_pool(new, wanted.difference(installed), now);
        let freed = by_pool(running, installed.difference(&wanted), now);
        Self::of((extra, freed), by_pool(running, installed.iter(), now), now)
    }

    /// The same for a successor, which shares nothing with what runs.
    pub(super) fn apart(
        running: &PartitionPlan,
        installed: &BTreeSet<Installed>,
        new: &PartitionPlan,
        now: &Machine,
    ) -> Self {
        let extra = by_pool(new, new.installed().iter(), now);
        let taken = by_pool(running, installed.iter(), now);
        Self::of((extra, taken.clone()), taken, now)
    }

    fn of((extra, freed): (Bytes, Bytes), taken: Bytes, now: &Machine) -> Self {
        let of = |sums: &Bytes, pool| sums.get(&pool).copied().unwrap_or(0);
        let pools: BTreeSet<Pool> = extra.keys().chain(freed.keys()).copied().collect();
        let one = |pool: Pool| {
            let free_bytes = match pool {
                Pool::Main => now.memory_bytes,
                Pool::Adapter(index) => {
                    let whole = now.adapters[index].memory_bytes.unwrap_or(0);
                    whole.saturating_sub(of(&taken, pool))
                }
            };
            let (extra_bytes, freed_bytes) = (of(&extra, pool), of(&freed, pool));
            Extra { place: pool_name(pool, now), extra_bytes, free_bytes, freed_bytes }
        };
        Self(pools.into_iter().map(one).collect())
    }

    pub(super) fn check(&self) -> Result<(), SwapError> {
        match self.0.iter().find(|extra| extra.extra_bytes > extra.free_bytes) {
            None => Ok(()),
            Some(Extra { place, extra_bytes, free_bytes, .. }) => Err(SwapError::Memory {
                place: place.clone(),
                extra_bytes: *extra_bytes,
                free_bytes: *free_bytes,
            }),
        }
    }
}

/// Bytes of every memory.
type Bytes = BTreeMap<Pool, u64>;

fn by_pool<'a>(
    plan: &PartitionPlan,
    stages: impl Iterator<Item = &'a Installed>,
    machine: &Machine,
) -> Bytes {
    let mut sums = BTreeMap::new();
    for installed in stages {
        if let Some(pool) = pool(&installed.spec, machine) {
            *sums.entry(pool).or_default() += plan.stage_memory(installed.stage).total_bytes();
        }
    }
    sums
}
