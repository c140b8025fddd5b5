//! The plan files that come with the product.
//!
//! *Invariant:* each file's plan has the file's name.

/// A plan file that comes with the product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShippedPlan {
    /// The plan's name, also the file's without `.toml`.
    pub name: &'static str,
    /// The file's text.
    pub text: &'static str,
}

macro_rules! plans {
    ($($name:literal),* $(,)?) => {
        &[$(ShippedPlan { name: $name, text: include_str!(concat!("../files/", $name, ".toml")) }),*]
    };
}

/// All shipped plans, those that need no GPU first.
pub fn shipped() -> &'static [ShippedPlan] {
    plans![
        "plain-all-cores",
        "sequential-all-cores",
        "overlap-two-cores",
        "lookup-all-cores",
        "split-two-cores",
        "draft-gpu-target-cpu",
        "target-gpu-draft-cpu",
        "both-gpu",
    ]
}

/// The shipped plan of that name.
pub fn shipped_plan(name: &str) -> Option<ShippedPlan> {
    shipped().iter().copied().find(|plan| plan.name == name)
}
