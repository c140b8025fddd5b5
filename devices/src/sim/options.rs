//! What a simulated unit is told to be: plain data, so that a test or a plan file can write it down.

/// Everything about a simulated unit. The default is an instant unit that never fails.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SimOptions {
    /// Name in descriptors and errors.
    pub name: String,
    /// Seed of the toy language. Units that share it agree on every text.
    pub language_seed: u64,
    /// Models that only follow the language now and then; the first whose prefix fits counts. Others always do.
    pub followers: Vec<Follower>,
    /// How long runs take; the first whose prefix fits counts. Others take no time.
    pub latencies: Vec<Latency>,
    /// What goes wrong, and when.
    pub faults: Faults,
}

/// A model that agrees with the language with some probability, such as a draft.
#[derive(Clone, Debug, PartialEq)]
pub struct Follower {
    /// Applies to subgraphs whose name begins so, such as `draft`.
    pub subgraph: String,
    /// Probability, decided for each context by a hash, that the model's logits are the language's own; 0 to 1.
    pub agreement: f64,
    /// Seed of the model's own mind where it does not agree.
    pub seed: u64,
}

/// Time of one run of `rows` rows of a stage of L layers: `run_ns + L * layer(rows)`.
#[derive(Clone, Debug, PartialEq)]
pub struct Latency {
    /// Applies to subgraphs whose name begins so; empty for all.
    pub subgraph: String,
    /// Fixed cost of a run.
    pub run_ns: u64,
    /// `(rows, ns)` in rising order of rows: time of one layer, linear between the points, proportional to the rows
    /// beyond the last one, and that of the first one before it. Empty costs nothing.
    pub layer_ns: Vec<(u32, u64)>,
}

/// Faults on demand. Runs and prepares are counted over the whole device, from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Faults {
    /// This prepare answers `OutOfMemory`.
    pub out_of_memory_at_prepare: Option<u64>,
    /// This run and all later ones answer `Lost`.
    pub lost_at_run: Option<u64>,
    /// This run never ends (see [`super::Delay::hang`]).
    pub hang_at_run: Option<u64>,
    /// From some run on, everything takes longer.
    pub slow: Option<Slow>,
}

/// A unit that slows down, as by heat.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Slow {
    /// First slow run.
    pub from_run: u64,
    /// Times are multiplied by this.
    pub factor: f64,
}

impl Latency {
    /// Nanoseconds of a run of `rows` rows through `layers` layers.
    pub fn of_run(&self, rows: u32, layers: u32) -> u64 {
        self.run_ns + u64::from(layers) * self.layer(rows)
    }

    fn layer(&self, rows: u32) -> u64 {
        let next = self.layer_ns.iter().position(|&(at, _)| at >= rows);
        match (next, self.layer_ns.last()) {
            (Some(0), _) => self.layer_ns[0].1,
            (Some(i), _) => {
                let ((r0, t0), (r1, t1)) = (self.layer_ns[i - 1], self.layer_ns[i]);
                let (done, span) = (i128::from(rows - r0), i128::from(r1 - r0));
                let (t0, t1) = (i128::from(t0), i128::from(t1));
                (t0 + (t1 - t0) * done / span) as u64
            }
            (None, Some(&(last, ns))) => ns * u64::from(rows) / u64::from(last.max(1)),
            (None, None) => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latency_is_linear_between_the_points_of_its_table() {
        let table = vec![(2, 100), (4, 300), (8, 400)];
        let latency = Latency { subgraph: String::new(), run_ns: 7, layer_ns: table };
        let of = |rows| latency.of_run(rows, 2) - 7;
        assert_eq!([1, 2, 3, 4, 6, 8, 16].map(of), [200, 200, 400, 600, 700, 800, 1600]);
        assert_eq!(Latency { layer_ns: Vec::new(), ..latency }.of_run(9, 9), 7);
    }
}
