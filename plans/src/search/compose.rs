//! A plan put together from parts: what the search and calibration make plans from.
//!
//! *Invariant:* what comes out has been checked like a plan that somebody wrote.

use std::fmt::Write as _;

use crate::context::PlanContext;
use crate::error::PlanError;
use crate::mode::Mode;
use crate::plan::{PartitionPlan, UnitSpec};

/// Parts of a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Composition {
    /// How tokens are decoded.
    pub mode: Mode,
    /// The units.
    pub units: Vec<UnitSpec>,
    /// The target's stages in layer order: index of the unit, and number of layers.
    pub target: Vec<(usize, usize)>,
    /// The draft's unit.
    pub draft: Option<usize>,
}

impl Composition {
    /// The target alone on one unit.
    pub fn plain(unit: UnitSpec, layers: usize) -> Self {
        Self { mode: Mode::Plain, units: vec![unit], target: vec![(0, layers)], draft: None }
    }

    /// The plan of that name.
    ///
    /// Fails if the parts do not make a plan that is right for the context.
    pub fn plan(&self, name: &str, context: &PlanContext) -> Result<PartitionPlan, PlanError> {
        let text = self.without_idle_units().to_toml(name);
        PartitionPlan::from_toml(&text, None, context)
            .map_err(|error| PlanError { at: None, ..error })
    }

    /// A name that says what it is, such as `sequential-4-cpu-0x2`.
    pub fn name(&self) -> String {
        let unit = |(index, spec): (usize, &UnitSpec)| {
            let holds = self.target.iter().filter(|(unit, _)| *unit == index);
            let layers: usize = holds.map(|(_, layers)| layers).sum();
            let draft =
                if self.draft == Some(index) && self.mode != Mode::Plain { "d" } else { "" };
            let target = match (layers, self.target.len()) {
                (0, _) => String::new(),
                (_, 1) => "t".to_owned(),
                (layers, _) => format!("t{layers}"),
            };
            let on = match spec {
                UnitSpec::Cpu { cores } => format!("cpu{}", cores.len()),
                UnitSpec::Gpu { adapter, .. } => format!("gpu{adapter}"),
                other => other.kind().to_string(),
            };
            format!("{target}{draft}-{on}")
        };
        let units: Vec<_> = self.units.iter().enumerate().map(unit).collect();
        let depth = match (self.mode, self.mode.depth()) {
            (_, None) => String::new(),
            (Mode::Overlap { wait, .. }, Some(depth)) => format!("-{depth}w{wait}"),
            (_, Some(depth)) => format!("-{depth}"),
        };
        format!("{}{depth}-{}", self.mode.kind(), units.join("-"))
    }

    /// Names of the units: their kind, with a number where there are several.
    fn unit_names(&self) -> Vec<String> {
        let name = |(index, spec): (usize, &UnitSpec)| {
            let kind = spec.kind().as_str();
            let alike = |other: &&UnitSpec| other.kind() == spec.kind();
            if self.units.iter().filter(alike).count() == 1 {
                return kind.to_owned();
            }
            format!("{kind}{}", self.units[..index].iter().filter(alike).count())
        };
        self.units.iter().enumerate().map(name).collect()
    }

    /// For a mode without drafts the draft is dropped, and so are units that hold nothing.
    fn without_idle_units(&self) -> Self {
        let mut parts = self.clone();
        if self.mode == Mode::Plain {
            parts.draft = None;
        }
        let used = |unit: usize| {
            parts.draft == Some(unit) || parts.target.iter().any(|(at, _)| *at == unit)
        };
        let kept: Vec<usize> = (0..self.units.len()).filter(|unit| used(*unit)).collect();
        let place = |unit: usize| kept.iter().position(|k| *k == unit).expect("it is used");
        Self {
            mode: self.mode,
            units: kept.iter().map(|unit| self.units[*unit].clone()).collect(),
            target: self.target.iter().map(|(unit, layers)| (place(*unit), *layers)).collect(),
            draft: parts.draft.map(place),
        }
    }

    fn to_toml(&self, name: &str) -> String {
        let mut text = format!("name = \"{name}\"\nmode = \"{}\"\n", self.mode.kind());
        let mut line = |words: String| writeln!(text, "{words}").expect("a String takes any text");
        let depth = self.mode.depth().map(|depth| match depth {
            crate::mode::DraftTokens::Fixed(tokens) => tokens.to_string(),
            crate::mode::DraftTokens::Auto => "\"auto\"".to_owned(),
        });
        if let Some(depth) = depth {
            line(format!("draft_tokens = {depth}"));
        }
        match self.mode {
            Mode::Overlap { wait, .. } => line(format!("wait = {wait}")),
            Mode::Lookup { ngram, .. } => line(format!("lookup_ngram = {ngram}")),
            Mode::Plain | Mode::Sequential { .. } => {}
        }
        let names = self.unit_names();
        for (unit, spec) in names.iter().zip(&self.units) {
            line(format!("[units.{unit}]\nkind = \"{}\"", spec.kind()));
            match spec {
                UnitSpec::Cpu { cores } => line(format!("cores = {cores:?}")),
                UnitSpec::Gpu { adapter, .. } => line(format!("adapter = {adapter}")),
                UnitSpec::Reference | UnitSpec::Sim => {}
            }
        }
        let mut first = 0;
        for (unit, layers) in &self.target {
            let end = first + layers;
            line(format!("[[target]]\nunit = \"{}\"\nlayers = \"{first}..{end}\"", names[*unit]));
            first = end;
        }
        if let Some(unit) = self.draft {
            line(format!("[[draft]]\nunit = \"{}\"\nlayers = \"all\"", names[unit]));
        }
        text
    }
}
