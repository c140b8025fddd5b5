//! What the pacer promises, on simulated units with a clock: one request is never slower than the target alone by more
//! than 3 % over any 500 tokens, and is back to drafting when that pays.

use std::sync::Arc;

use outrider_devices::SequenceId;
use outrider_pipeline::pacing::GuardState;
use outrider_pipeline::scheduler::{Prefixes, RoleLimits, Units};
use outrider_pipeline::{
    Action, Admission, DecodingMode, Detokenize, DraftPolicy, Event, GenerationParams, Pace,
    Scheduler, SchedulerConfig,
};

use crate::toy::{Pair, Random, Toy, VOCABULARY};

/// Tokens of a window.
const WINDOW: usize = 500;

struct Silent;

impl Detokenize for Silent {
    fn push(&mut self, _: u32) -> String {
        String::new()
    }
    fn finish(&mut self) -> String {
        String::new()
    }
}

/// What one run is like. Times in nanoseconds of a clock that nobody waits for.
#[derive(Clone, Copy, Debug)]
struct Scene {
    seed: u64,
    policy: DraftPolicy,
    units: Units,
    /// A pass of one row, each row more, and a step of the draft.
    pass: u64,
    row: u64,
    step: u64,
    sequences: u64,
    /// Most that a job's time differs from its usual one, in percent.
    noise: u64,
    /// How often the draft is right, in percent, after so many tokens of a text.
    agreement: fn(usize) -> u64,
    tokens: u32,
}

impl Scene {
    fn new(seed: u64) -> Self {
        Self {
            seed,
            policy: DraftPolicy::sequential(15).by_worth(),
            units: Units::Shared,
            pass: 1_000_000,
            row: 100_000,
            step: 80_000,
            sequences: 1,
            noise: 4,
            agreement: |_| 0,
            tokens: 3000,
        }
    }

    /// Time that the target alone takes for a token.
    fn plain(&self) -> f64 {
        let pass = self.pass + (self.sequences - 1) * self.row;
        pass as f64 / self.sequences as f64
    }
}

/// The times at which tokens came, and the scheduler afterwards.
struct Played {
    times: Vec<u64>,
    scheduler: Scheduler,
}

impl Played {
    /// The worst and the last window's speed, over the target's alone.
    fn speeds(&self, plain: f64) -> (f64, f64) {
        let speed = |pair: &[u64]| WINDOW as f64 * plain / (pair[WINDOW] - pair[0]) as f64;
        // The first tokens come while the others' prompts are read.
        let times = &self.times[16..];
        let windows: Vec<f64> = times.windows(WINDOW + 1).map(speed).collect();
        let worst = windows.iter().copied().fold(f64::INFINITY, f64::min);
        (worst, windows[windows.len() - 1])
    }
}

fn play(scene: &Scene) -> Played {
    let mut random = Random(scene.seed);
    let pair = Pair { salt: random.next(), agreement: 0, memory: 3 };
    let (mut target, mut draft) = (Toy::target(pair), Toy::draft(pair));
    let positions = scene.tokens + 8;
    let limits = RoleLimits { rows_max: 128, positions_max: positions };
    let config = SchedulerConfig {
        sequences_max: 8,
        queue_max: 8,
        queue_tokens_max: 1 << 20,
        target: limits,
        draft: limits,
        vocabulary: VOCABULARY,
        end_of_text: Arc::new([]),
        policy: scene.policy,
        units: scene.units,
        known_times: Default::default(),
        prefixes: Prefixes::Forget,
    };
    let mut scheduler = Scheduler::new(config, Box::new(|_| Box::new(Silent)));
    let (mut now, mut times, mut under_way) = (0, Vec::new(), Vec::new());
    let mut events = Vec::new();
    for id in 0..scene.sequences {
        let params = GenerationParams {
            max_tokens: Some(scene.tokens),
            ignore_eos: true,
            ..GenerationParams::default()
        };
        let prompt = random.tokens(3);
        events.push(Event::Admit(Admission { sequence: SequenceId(id), prompt, params }));
    }
    loop {
        for event in events.drain(..) {
            for action in scheduler.step(now, event) {
                let (usual, event) = match action {
                    Action::RunTarget { ticket, batch } => {
                        let mut picks = Vec::new();
                        for s in &batch.segments {
                            let place = (s.sequence.0, s.base);
                            picks.extend(target.run(place, &s.tokens, s.want.rows(), &s.sampling));
                        }
                        let usual = scene.pass + (batch.rows() as u64 - 1) * scene.row;
                        (usual, Event::TargetDone { ticket, picks })
                    }
                    Action::RunDraft { ticket, batch } => {
                        let (mut drafted, mut steps, mut missed) = (Vec::new(), 0, 0);
                        for s in &batch.segments {
                            let (ask, place) = (&s.segment, (s.segment.sequence.0, s.segment.base));
                            draft.pair.agreement = (scene.agreement)(ask.base as usize);
                            missed += ask.tokens.len() as u64 - 1;
                            let mut picks =
                                draft.extend(place, &ask.tokens, s.steps, &ask.sampling);
                            // Sure of itself, with or without reason.
                            picks.iter_mut().for_each(|pick| pick.probability = 0.9);
                            steps = steps.max(picks.len() as u64);
                            drafted.push(picks);
                        }
                        let usual = 10_000 + steps * scene.step + missed * scene.step / 10;
                        (usual, Event::DraftDone { ticket, drafted })
                    }
                    Action::Emit { tokens, .. } => {
                        times.extend(tokens.iter().map(|_| now));
                        continue;
                    }
                    Action::Finish { .. } => return Played { times, scheduler },
                    _ => continue,
                };
                let noise = usual * random.below(2 * scene.noise + 1) / 100;
                under_way.push((now + usual - usual * scene.noise / 100 + noise, event));
            }
        }
        let next = (0..under_way.len()).min_by_key(|&i| under_way[i].0);
        let (at, event) = under_way.swap_remove(next.unwrap());
        now = at;
        events.push(event);
    }
}

/// A draft of random weights, of any speed, on units of any steepness, for one request and for several.
#[test]
fn a_draft_that_is_never_right_costs_a_request_less_than_three_percent() {
    let mut worst = f64::INFINITY;
    for seed in 0..6 {
        for (row, step) in [(20_000, 50_000), (100_000, 80_000), (500_000, 300_000), (0, 1_500_000)]
        {
            for (sequences, units) in [(1, Units::Shared), (4, Units::Shared), (1, Units::Separate)]
            {
                for policy in [
                    DraftPolicy::sequential(15).by_worth(),
                    DraftPolicy::sequential(4).guarded(),
                    DraftPolicy::overlap(15, 2, 1).by_worth(),
                ] {
                    let overlaps = matches!(policy.mode, DecodingMode::Overlap { .. });
                    // A fixed depth of a slow draft, or of several requests, loses more in one round than the guard
                    // can make up for within 500 tokens.
                    let fixed = policy.pace == Pace::Fixed && (sequences > 1 || step > 300_000);
                    if overlaps != (units == Units::Separate) || fixed {
                        continue;
                    }
                    for agreement in [|_| 0, |_| 10] as [fn(usize) -> u64; 2] {
                        let base = Scene::new(seed);
                        let scene =
                            Scene { row, step, sequences, units, policy, agreement, ..base };
                        let (found, _) = play(&scene).speeds(scene.plain());
                        // A round of four requests loses four times as much before it is seen to lose.
                        let least = if sequences == 1 { 0.97 } else { 0.94 };
                        assert!(found >= least, "{found} of the target alone: {scene:?}");
                        worst = worst.min(found);
                    }
                }
            }
        }
    }
    assert!(worst < 1.0, "a bad draft that costs nothing proves nothing");
}

/// Good, then useless, then good again.
#[test]
fn drafting_stops_where_a_text_turns_hard_and_comes_back_where_it_turns_easy() {
    for seed in 0..20 {
        for policy in [DraftPolicy::sequential(15).by_worth(), DraftPolicy::sequential(4).guarded()]
        {
            let agreement = |at| if (1500..3000).contains(&at) { 1 } else { 92 };
            let scene = Scene { policy, agreement, tokens: 5000, ..Scene::new(seed) };
            let played = play(&scene);
            let (worst, last) = played.speeds(scene.plain());
            assert!(worst >= 0.97, "{worst} at worst: {scene:?}");
            assert!(last > 1.5, "{last} at the end: {scene:?}");
            assert_eq!(played.scheduler.pacing().guard, GuardState::On);
        }
    }
}

/// The stop rule against every fixed depth, for drafts of several qualities and costs. These drafts' confidence says
/// nothing, so that the rule can only find the best depth, and pays for finding it.
#[test]
fn the_stop_rule_is_about_as_fast_as_the_best_fixed_depth() {
    let qualities: [fn(usize) -> u64; 3] = [|_| 60, |_| 80, |_| 93];
    for (agreement, step) in qualities.into_iter().flat_map(|a| [(a, 40_000), (a, 150_000)]) {
        let time = |policy| {
            let scene = Scene { policy, agreement, step, tokens: 4000, ..Scene::new(7) };
            let played = play(&scene);
            played.times[3999] - played.times[0]
        };
        let plain = time(DraftPolicy::plain());
        let depths = (1..=10).map(|depth| time(DraftPolicy::sequential(depth)));
        let best = depths.min().unwrap().min(plain);
        let auto = time(DraftPolicy::sequential(15).by_worth());
        let share = best as f64 / auto as f64;
        let gain = plain as f64 / auto as f64;
        assert!(share > 0.85, "{share} of the best, {gain} of plain, step {step}");
    }
}

/// Where more rows only cost arithmetic, eight requests leave nothing to gain by drafting.
#[test]
fn speculation_fades_in_company() {
    let drafted = |sequences| {
        let agreement = |_| 80;
        let scene = Scene { sequences, agreement, row: 350_000, tokens: 1500, ..Scene::new(3) };
        let played = play(&scene);
        let (worst, last) = played.speeds(scene.plain());
        assert!(worst >= 0.97 && last >= 0.97, "{worst} and {last} with {sequences}");
        let depths = played.scheduler.pacing().depths;
        let passes: u64 = depths.iter().sum();
        depths.iter().zip(0u64..).map(|(n, depth)| n * depth).sum::<u64>() as f64 / passes as f64
    };
    let (alone, together) = (drafted(1), drafted(8));
    assert!(alone > 0.4 && together < alone / 2.0, "{alone} alone, {together} together");
}

#[test]
fn the_same_events_give_the_same_decisions() {
    let agreement = |_| 70;
    let scene = Scene { agreement, ..Scene::new(11) };
    assert_eq!(play(&scene).times, play(&scene).times);
}
