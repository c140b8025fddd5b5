//! The machine and the models that the tests of this crate plan for.

use outrider_plans::{
    Adapter, AdapterKind, CacheFormat, CacheLimits, HeadWeights, Machine, ModelShape, PlanContext,
};

/// A model of `layers` blocks of 1 MiB each, 4 MiB of tied embedding, 512 bytes of cache per position and block.
pub(crate) fn model(layers: usize) -> ModelShape {
    ModelShape {
        layer_bytes: vec![1 << 20; layers],
        embedding_bytes: 4 << 20,
        head_bytes: 4 << 20,
        head: HeadWeights::Tied,
        cache_bytes: 512,
        width: 256,
        vocabulary: 8192,
    }
}

/// Two cores and a GPU, a target of 8 layers and a draft of 3, four sequences of 512 positions.
pub(crate) fn two_cores() -> PlanContext {
    let mut machine = Machine::uniform(2, 1 << 30);
    machine.adapters.push(Adapter {
        name: "Mali-G310".to_owned(),
        kind: AdapterKind::Integrated,
        memory_bytes: None,
    });
    PlanContext {
        machine,
        target: model(8),
        draft: Some(model(3)),
        caches: CacheLimits { sequences_max: 4, positions_max: 512, format: CacheFormat::F16 },
    }
}
