//! The units that run, by name and hardware, with what is installed on each.
//!
//! *Invariant:* while a plan with other cores for a unit takes over, both units of that name are here, told apart by their
//! hardware.

use std::collections::BTreeMap;
use std::sync::Arc;

use actix::prelude::Addr;
use outrider_devices::MemoryUse;
use outrider_plans::{Installed, UnitId, UnitSpec};
use tracing::info;

use super::{Blueprint, Down};
use crate::fleet::factory;
use crate::messages::{Hop, Install, InstallId, InstanceId, Retire, UnitError};
use crate::unit::{ComputeUnit, UnitOptions, Waiting, Workplace};

/// Names a unit by its content.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct UnitKey {
    pub(super) unit: UnitId,
    pub(super) spec: UnitSpec,
}

impl UnitKey {
    pub(super) fn of(installed: &Installed) -> Self {
        Self { unit: installed.unit.clone(), spec: installed.spec.clone() }
    }
}

/// A unit that runs.
pub(super) struct Instance {
    pub(super) id: InstanceId,
    pub(super) address: Addr<ComputeUnit>,
    pub(super) stages: BTreeMap<Installed, (InstallId, MemoryUse)>,
}

/// All units that run.
#[derive(Default)]
pub(super) struct Fleet {
    instances: BTreeMap<UnitKey, Instance>,
    named: u64,
}

impl Fleet {
    fn next_name(&mut self) -> u64 {
        self.named += 1;
        self.named
    }

    /// Starts a unit with nothing installed, unless it runs.
    pub(super) fn start(
        &mut self,
        blueprint: &Blueprint,
        key: &UnitKey,
        down: Down,
    ) -> &mut Instance {
        let named = self.next_name();
        self.instances.entry(key.clone()).or_insert_with(|| {
            let UnitKey { unit, spec } = key;
            let id = InstanceId(named);
            let told = blueprint.factories.get(unit).map(Arc::clone);
            let waiting = match blueprint.workplace {
                Workplace::Threads => Waiting::of(spec, &blueprint.cores),
                Workplace::Inline(_) => Waiting::asleep(),
            };
            let address = ComputeUnit::start_with(UnitOptions {
                id: unit.clone(),
                instance: id,
                factory: told.unwrap_or_else(|| factory(spec)),
                workplace: blueprint.workplace.clone(),
                waiting,
                meter: blueprint.meter.unit(unit, spec.kind()),
                supervisor: down,
                hang_after: blueprint.restart.hang_after,
            });
            Instance { id, address, stages: BTreeMap::new() }
        })
    }

    /// Starts a unit with all its stages.
    pub(super) async fn build(
        &mut self,
        blueprint: &Blueprint,
        key: UnitKey,
        stages: Vec<Installed>,
        down: Down,
    ) -> Result<(), UnitError> {
        let names: Vec<InstallId> = stages.iter().map(|_| InstallId(self.next_name())).collect();
        let instance = self.start(blueprint, &key, down);
        for (stage, id) in stages.into_iter().zip(names) {
            let done = match blueprint.install(&stage, id) {
                Ok(install) => install_on(&instance.address, &key.unit, install).await,
                Err(error) => Err(error),
            };
            match done {
                Ok(memory) => drop(instance.stages.insert(stage, (id, memory))),
                Err(error) => {
                    instance.address.do_send(Retire);
                    self.instances.remove(&key);
                    return Err(error);
                }
            }
        }
        self.show_memory(blueprint, &key);
        Ok(())
    }

    /// Takes over the units of another fleet. Names must not collide: those of this fleet go on above its own.
    pub(super) fn absorb(&mut self, other: Fleet) {
        self.named = self.named.max(other.named);
        self.instances.extend(other.instances);
    }

    /// A fleet without units whose names are not used by this one.
    pub(super) fn apart(&mut self) -> Fleet {
        // More than the stages of any plan, so that both can go on naming.
        const NAMES_RESERVED: u64 = 1 << 20;
        let named = self.named;
        self.named += NAMES_RESERVED;
        Fleet { instances: BTreeMap::new(), named }
    }

    pub(super) fn get(&self, key: &UnitKey) -> Option<&Instance> {
        self.instances.get(key)
    }

    /// The unit with that name of an instance, if it still runs.
    pub(super) fn key_of(&self, id: InstanceId) -> Option<UnitKey> {
        self.instances.iter().find(|(_, instance)| instance.id == id).map(|(key, _)| key.clone())
    }

    /// Ends all units.
    pub(super) fn retire_all(&mut self, blueprint: &Blueprint) {
        for key in self.instances.keys().cloned().collect::<Vec<_>>() {
            self.retire(blueprint, &key);
        }
    }

    /// Ends a unit with everything on it.
    pub(super) fn retire(&mut self, blueprint: &Blueprint, key: &UnitKey) {
        if let Some(instance) = self.instances.remove(key) {
            instance.address.do_send(Retire);
        }
        self.show_memory(blueprint, key);
    }

    pub(super) fn hop(&self, stage: &Installed) -> Option<Hop> {
        let Instance { id, address, stages } = self.instances.get(&UnitKey::of(stage))?;
        let (install, _) = stages.get(stage)?;
        Some(Hop {
            unit: stage.unit.clone(),
            instance: *id,
            stage: stage.stage,
            install: *install,
            batches: address.clone().recipient(),
            drafts: address.clone().recipient(),
            releases: address.clone().recipient(),
        })
    }

    /// Names the next installation on a unit that runs.
    pub(super) fn name_install(&mut self) -> InstallId {
        InstallId(self.next_name())
    }

    /// A stage is there. False if its unit has died meanwhile.
    pub(super) fn installed(
        &mut self,
        blueprint: &Blueprint,
        stage: &Installed,
        (instance, install, memory): (InstanceId, InstallId, MemoryUse),
    ) -> bool {
        let key = &UnitKey::of(stage);
        let Some(found) = self.instances.get_mut(key).filter(|found| found.id == instance) else {
            return false;
        };
        found.stages.insert(stage.clone(), (install, memory));
        self.show_memory(blueprint, key);
        true
    }

    /// A stage is gone; its unit goes with its last one.
    pub(super) fn evicted(&mut self, blueprint: &Blueprint, stage: &Installed) {
        let key = &UnitKey::of(stage);
        let Some(instance) = self.instances.get_mut(key) else { return };
        instance.stages.remove(stage);
        if instance.stages.is_empty() {
            self.retire(blueprint, key);
        } else {
            self.show_memory(blueprint, key);
        }
    }

    /// Shows what all units of one name hold together.
    fn show_memory(&self, blueprint: &Blueprint, key: &UnitKey) {
        let same = self.instances.iter().filter(|(other, _)| other.unit == key.unit);
        let held = same.flat_map(|(_, instance)| instance.stages.values());
        let sum = held.fold(MemoryUse::default(), |sum, (_, memory)| MemoryUse {
            weights: sum.weights + memory.weights,
            caches: sum.caches + memory.caches,
            scratch: sum.scratch + memory.scratch,
        });
        blueprint.meter.memory(&key.unit, key.spec.kind(), sum);
    }
}

impl Blueprint {
    pub(super) fn install(
        &self,
        stage: &Installed,
        install: InstallId,
    ) -> Result<Install, UnitError> {
        let subgraph = self.library.subgraph(stage).map_err(|error| UnitError::Model {
            unit: stage.unit.clone(),
            detail: error.to_string(),
        })?;
        let (stage, limits) = (stage.stage, self.limits[&stage.stage.role]);
        Ok(Install { install, stage, subgraph, limits })
    }
}

/// Installs a stage on a unit that runs.
pub(super) async fn install_on(
    address: &Addr<ComputeUnit>,
    unit: &UnitId,
    install: Install,
) -> Result<MemoryUse, UnitError> {
    let stage = install.stage;
    let gone = || UnitError::Gone { unit: unit.clone(), reason: "its actor has ended".into() };
    let memory = address.send(install).await.map_err(|_| gone())??;
    info!(%unit, %stage, weights = memory.weights, caches = memory.caches, "stage installed");
    Ok(memory)
}
