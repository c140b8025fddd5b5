//! GPU units that fail: lost, hung, out of memory, a kernel that does not compile. Each is a typed error of its own unit;
//! the texts of a unit that can be rebuilt do not change.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use outrider::engine::{Engine, EngineLimits, EngineOptions};
use outrider::supervisor::RestartPolicy;
use outrider::unit::DeviceFactory;
use outrider_devices::gpu::{GpuDevice, GpuFault, GpuOptions, GpuSelector};
use outrider_devices::{Device, Sampling};
use outrider_plans::{PartitionPlan, UnitId};

use crate::equivalence::{pair, plan, registry, tokens};

const SENTENCE: &str = "Please restart the computer to finish the installation.";

fn draft_on_gpu() -> PartitionPlan {
    plan(
        "name = \"test\"\nmode = \"sequential\"\ndraft_tokens = 4\n\
         [units.a]\nkind = \"cpu\"\ncores = 1\n[units.g]\nkind = \"gpu\"\nadapter = 0\n\
         [[target]]\nunit = \"a\"\nlayers = \"all\"\n[[draft]]\nunit = \"g\"\nlayers = \"all\"\n",
    )
}

/// A factory whose first device has `fault`, and later ones none; and how many it has made.
fn factory(fault: GpuFault) -> (DeviceFactory, Arc<AtomicUsize>) {
    let made = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&made);
    let factory: DeviceFactory = Arc::new(move || {
        let first = count.fetch_add(1, Ordering::SeqCst) == 0;
        let faults = if first { vec![fault] } else { Vec::new() };
        let options = GpuOptions { faults, ..GpuOptions::default() };
        Ok(Box::new(GpuDevice::open(&GpuSelector::Best, options)?) as Box<dyn Device>)
    });
    (factory, made)
}

/// An engine whose draft is on a GPU with `fault`.
async fn engine(fault: GpuFault) -> (Result<Engine, String>, Arc<AtomicUsize>) {
    let (factory, made) = factory(fault);
    let limits = EngineLimits { parallel: 2, ..EngineLimits::default() };
    let mut options = EngineOptions::new(pair(), draft_on_gpu(), limits, registry());
    options.factories.extend(BTreeMap::from([(UnitId::new("g"), factory)]));
    options.restart = RestartPolicy {
        restarts_max: 3,
        window: Duration::from_secs(600),
        backoff: Duration::from_millis(1),
        ..RestartPolicy::default()
    };
    (Engine::start(options).await.map_err(|e| e.to_string()), made)
}

#[actix::test]
async fn a_lost_or_hung_gpu_is_rebuilt_and_no_text_changes() {
    if crate::gpu::unit().is_none() {
        return;
    }
    // Loading the draft takes fewer submissions than this, and one answer more than what is left.
    let never = GpuFault::LoseAtSubmission(u64::MAX);
    let (calm, _) = engine(never).await;
    let calm = calm.unwrap();
    let expected = tokens(&calm, SENTENCE, &Sampling::default()).await;
    calm.stop();
    for fault in [GpuFault::LoseAtSubmission(40), GpuFault::TimeOutAtSubmission(41)] {
        let (engine, made) = engine(fault).await;
        let engine = engine.unwrap();
        for _ in 0..8 {
            assert_eq!(
                tokens(&engine, SENTENCE, &Sampling::default()).await,
                expected,
                "{fault:?}"
            );
        }
        assert_eq!(made.load(Ordering::SeqCst), 2, "{fault:?}");
        assert_eq!(engine.health().await, Ok(()), "{fault:?}");
        engine.stop();
    }
}

#[actix::test]
async fn a_gpu_without_room_or_with_a_broken_compiler_is_refused_by_name() {
    if crate::gpu::unit().is_none() {
        return;
    }
    let broken = [
        (GpuFault::OutOfMemoryAtAllocation(0), "out of memory"),
        (GpuFault::BreakShadersAfter(2), "could not compile"),
    ];
    for (fault, words) in broken {
        let (refused, _) = engine(fault).await;
        let Err(refused) = refused.map(|engine| engine.stop()) else { panic!("{fault:?} started") };
        assert!(refused.contains(words) && refused.contains("injected"), "{refused}");
    }
}
