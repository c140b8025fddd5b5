//! The GPU unit: stages as WGSL generated for their sizes and run through wgpu (Vulkan, Metal or DX12).
//!
//! A stage is lowered to a few fused kernels a block ([`lower`]), its weights are repacked into tiles of four rows
//! ([`pack`]) and uploaded once; a batch is one command buffer and one read-back, and a draft of g tokens is the step
//! recorded g times with the picked token feeding the next embedding on the device. *Invariant:* a row's bits depend
//! on its own sequence alone. Every kernel computes a row by the same operations in the same order whatever the
//! number of rows, and every multiply-add is an explicit `fma`, so that no compiler chooses between two roundings.

mod adapter;
mod autotune;
mod between;
mod builder;
mod compiled;
mod context;
mod desktop;
mod device;
mod executable;
mod format;
mod kernels;
mod lower;
pub mod measure;
mod pack;
mod pipelines;
mod record;
mod rehearsal;
mod stage;
mod state;
#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests;
mod tuning;
mod weights;

pub use adapter::{AdapterKind, AdapterLimits, Discovery, GpuAdapter, GpuSelector, discover, find};
pub use autotune::autotune;
pub use context::GpuFault;
pub use desktop::do_without_desktop;
pub use device::{GpuDevice, GpuOptions};
pub use format::StoredFormat;
pub use tuning::{Backing, Sums, Tuning};
