//! Boards that are not here: the search finds a plan for each shipped one, and simulated units run that plan under a virtual
//! clock about as fast as was foreseen.

use std::collections::BTreeMap;
use std::sync::Arc;

use outrider::engine::EngineLimits;
use outrider::foresight::Foresight;
use outrider_devices::graph::WeightFormat;
use outrider_devices::sim::{Follower, Latency, RecordedDelay, SimDevice, SimOptions};
use outrider_devices::synthetic::{llama, tiny};
use outrider_devices::{
    Batch, CacheFormat, Device, DraftBatch, Drafted, Executable, Output, Pick, SequenceId,
    SlotLimits, Subgraph,
};
use outrider_pipeline::rehearsal::{Answer, Players};
use outrider_plans::cost::{Before, Piece, PlanTimes, Purpose, SampleText, StageTimes};
use outrider_plans::{
    Acceptance, Board, Mode, ModelRole, Objective, PartitionPlan, Workload, shipped_boards,
};

/// Foreseen and simulated speed may differ by this: the toy language's acceptance is a matter of luck, and a simulated unit
/// charges every row as if it ran through the head.
const BOUND: f64 = 0.04;
/// Texts that are decoded: many, so that luck counts little.
const TEXTS: usize = 240;

fn foresight(board: &Board, workload: Workload) -> Foresight {
    let context = board.context();
    let positions = Some(context.caches.positions_max);
    let limits = EngineLimits { context: positions, ..EngineLimits::default() };
    // No token of the toy language ends a text.
    Foresight::new(board.model(), context, workload, (board.vocabulary(), Arc::from([])), limits)
}

fn workload(board: &Board, acceptance: f64) -> Workload {
    let sample = &board.workload().texts[0];
    let lengths = (sample.prompt.len(), sample.output.len());
    Workload::made_up(&Acceptance::constant(acceptance), lengths, TEXTS)
}

/// One simulated stage and how its time passes.
struct Unit {
    executable: Box<dyn Executable>,
    clock: Arc<RecordedDelay>,
    times: StageTimes,
}

/// Simulated units in the place of a plan's.
struct Simulated {
    target: Vec<Unit>,
    draft: Vec<Unit>,
}

fn units(stages: &[StageTimes], acceptance: f64) -> Vec<Unit> {
    let layers = stages.iter().map(|stage| stage.stage.layer_end).max().unwrap_or(0);
    if layers == 0 {
        return Vec::new();
    }
    let graph = Arc::new(llama(&tiny(layers), WeightFormat::F32, 1));
    let unit = |times: &StageTimes| {
        let (first, end) = (times.stage.layer_first, times.stage.layer_end);
        let name = times.stage.to_string();
        let subgraph = Subgraph::cut(name, &graph, first, end).unwrap();
        let each = |rows: u32| {
            // A prompt's rows do not run through the head, nor do a draft's that it only catches up with.
            let heads = if rows > 16 { 1 } else { rows };
            (rows, times.compute_ns(rows, heads, 64) / (end - first) as u64)
        };
        let rows = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 16, 17, 24, 32, 48, 64, 96, 128];
        let latency = Latency {
            subgraph: String::new(),
            run_ns: 0,
            layer_ns: rows.into_iter().map(each).collect(),
        };
        let follower = Follower { subgraph: "draft".to_owned(), agreement: acceptance, seed: 7 };
        let options = SimOptions {
            name: times.unit.to_string(),
            language_seed: 3,
            followers: vec![follower],
            latencies: vec![latency],
            ..SimOptions::default()
        };
        let clock = Arc::new(RecordedDelay::default());
        let mut device = SimDevice::new(options, clock.clone());
        let limits = SlotLimits {
            sequences_max: 8,
            positions_max: 512,
            rows_max: 128,
            cache: CacheFormat::F16,
        };
        let executable = device.prepare(&subgraph, limits).unwrap();
        Unit { executable, clock, times: times.clone() }
    };
    stages.iter().map(unit).collect()
}

impl Unit {
    fn piece(&self, role: ModelRole) -> Piece {
        let ns = self.clock.take().as_nanos() as u64;
        Piece { purpose: Purpose::Row(role), unit: Some(self.times.unit.clone()), ns }
    }
}

impl Players for Simulated {
    fn begin(&mut self, _: SequenceId, _: &SampleText) {}

    fn target(&mut self, batch: &Batch, _: Before) -> Answer<Vec<Pick>> {
        let (mut input, mut pieces) = (None, Vec::new());
        for unit in &mut self.target {
            let output = unit.executable.run(batch, input.take()).unwrap();
            pieces.push(unit.piece(ModelRole::Target));
            match output {
                Output::Activations(activations) => input = Some(activations),
                Output::Picked(picked) => return Answer { answer: picked.picks, pieces },
            }
        }
        panic!("the last stage picks")
    }

    fn draft(&mut self, batch: &DraftBatch, _: Before) -> Answer<Vec<Drafted>> {
        let unit = &mut self.draft[0];
        let answer = unit.executable.draft(batch).unwrap();
        Answer { answer, pieces: vec![unit.piece(ModelRole::Draft)] }
    }

    fn end(&mut self, sequence: SequenceId) {
        for unit in self.target.iter_mut().chain(&mut self.draft) {
            unit.executable.release(sequence);
        }
    }
}

/// Speed of a plan on simulated units, tokens per second.
fn simulated(foresight: &Foresight, plan: &PartitionPlan, acceptance: f64) -> f64 {
    let times: PlanTimes = foresight.model.times(plan, &foresight.context).unwrap();
    let mut players = Simulated {
        target: units(&times.target, acceptance),
        draft: units(&times.draft, acceptance),
    };
    foresight.play(plan, &times, &mut players).rate() as f64 / 1e6
}

/// The best plan of each kind: what a search answers first, and the best that drafts on another unit, splits the target, or
/// drafts nothing.
fn kinds(found: Vec<PartitionPlan>) -> BTreeMap<&'static str, PartitionPlan> {
    let mut kinds = BTreeMap::new();
    for plan in found {
        let kind = match plan.mode {
            _ if plan.chain(ModelRole::Target).len() > 1 => "split",
            Mode::Overlap { .. } => "overlap",
            Mode::Sequential { .. } => "sequential",
            Mode::Plain => "plain",
            // Whether a text repeats itself is not in a board's file.
            Mode::Lookup { .. } => continue,
        };
        kinds.entry(kind).or_insert(plan);
    }
    kinds
}

#[test]
fn each_boards_plans_run_on_simulated_units_as_fast_as_foreseen() {
    for shipped in shipped_boards() {
        let board = Board::parse(shipped.text).unwrap();
        let acceptance = f64::from(board.workload().acceptance_permille()) / 1000.0;
        let foresight = foresight(&board, workload(&board, acceptance));
        let found = foresight.search(Objective::Throughput, None);
        let best = &found.ranked[0];
        assert!(best.forecast.speedup_permille() >= 1000, "{}: {}", shipped.name, best.forecast);
        let plans = found.ranked.iter().map(|candidate| candidate.plan.clone()).collect();
        let kinds = kinds(plans);
        assert!(kinds.len() > 1, "{}: {:?}", shipped.name, kinds.keys());
        for (kind, plan) in kinds {
            let foreseen = foresight.forecast(&plan).unwrap().microtokens_per_second as f64 / 1e6;
            let simulated = simulated(&foresight, &plan, acceptance);
            let error = foreseen / simulated - 1.0;
            assert!(
                error.abs() <= BOUND,
                "{} {kind} {}: {foreseen:.3} foreseen, {simulated:.3} simulated",
                shipped.name,
                plan.name
            );
        }
    }
}
