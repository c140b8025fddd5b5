//! What the pacer promises, on simulated units with a clock: whatever the draft is like, one request is not slower than the
//! target alone by more than 3 % over any 500 tokens, and 5 % where several are written at once or the machine stumbles; and
//! they are back to drafting when that pays.
//!
//! The machine's stumbles are known here, so they are taken out of the time that is compared: what is left is what the
//! decisions cost.

use std::sync::Arc;

use outrider_devices::{Drafted, SequenceId};
use outrider_pipeline::pacing::GuardState;
use outrider_pipeline::scheduler::{Prefixes, RoleLimits, Units};
use outrider_pipeline::{
    Action, Admission, DecodingMode, Detokenize, DraftPolicy, Event, GenerationParams, Scheduler,
    SchedulerConfig,
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

/// How the times of jobs differ from the usual ones.
#[derive(Clone, Copy, Debug)]
enum Noise {
    /// By at most so many percent, each by itself.
    Even(u64),
    /// One job in `every` takes `times` as long.
    Stalls { every: u64, times: u64 },
    /// For 40 ms of every 100 ms all jobs take three times as long.
    Phases,
    /// The first so many jobs take ten times as long.
    SlowStart(u64),
}

/// The least speed over the target's alone: where one request is written on a machine that keeps its pace, and elsewhere.
const LEAST: f64 = 0.97;
const LEAST_ELSEWHERE: f64 = 0.95;
/// On a machine that is three times as slow in phases, a window and the one that it is compared with need not meet the same phases.
const LEAST_IN_PHASES: f64 = 0.9;

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
    /// A job of the draft besides its steps, and a row that it has missed.
    start: u64,
    missed: u64,
    /// The draft runs all steps that it is asked for, as one does that is given them at once.
    runs_on: bool,
    /// How much longer, in percent, the target takes while a draft on a unit of its own works beside it: they share the memory.
    contention: u64,
    /// Requests that are decoded at the same time, and all of them: who has an answer asks again.
    clients: u64,
    requests: u64,
    prompt: u64,
    noise: Noise,
    /// How often the draft is right, in percent, for which request, after so many tokens of a text.
    agreement: fn(u64, usize) -> u64,
    /// Tokens of each answer.
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
            start: 10_000,
            missed: 8_000,
            runs_on: false,
            contention: 0,
            clients: 1,
            requests: 1,
            prompt: 3,
            noise: Noise::Even(4),
            agreement: |_, _| 0,
            tokens: 3000,
        }
    }

    /// Many short requests, one client after the other.
    fn short(seed: u64, clients: u64) -> Self {
        let requests = 60 * clients;
        Self { clients, requests, prompt: 20, tokens: 60, ..Self::new(seed) }
    }

    fn alone(&self) -> Played {
        play(&Self { policy: DraftPolicy::plain(), noise: Noise::Even(0), ..*self })
    }

    fn lasts(&self, usual: u64, (now, job): (u64, u64), random: &mut Random) -> u64 {
        match self.noise {
            Noise::Even(percent) => {
                let noise = usual * random.below(2 * percent + 1) / 100;
                usual - usual * percent / 100 + noise
            }
            Noise::Stalls { every, times } if random.below(every) == 0 => usual * times,
            Noise::Phases if now % 100_000_000 < 40_000_000 => 3 * usual,
            Noise::SlowStart(jobs) if job < jobs => 10 * usual,
            Noise::Stalls { .. } | Noise::Phases | Noise::SlowStart(_) => usual,
        }
    }

    /// How much longer a job that starts takes because of what is under way. A draft's job holds up the target's instead.
    fn held_up(&self, event: &Event, (now, lasts): (u64, u64), under_way: &mut [UnderWay]) -> u64 {
        let Some(other) = under_way.first_mut().filter(|_| self.contention > 0) else { return 0 };
        let held_up = lasts.min(other.0 - now) * self.contention / 100;
        if matches!(event, Event::TargetDone { .. }) {
            return held_up;
        }
        other.0 += held_up;
        0
    }
}

/// A job under way: when it ends, how much of it is a stumble, and what it ends with.
type UnderWay = (u64, u64, Event);

/// The times at which tokens came, without the stumbles of shared units, and the scheduler afterwards.
struct Played {
    times: Vec<u64>,
    scheduler: Scheduler,
}

impl Played {
    /// The worst and the last window's speed, over the target's alone.
    fn speeds(&self, alone: &Played) -> (f64, f64) {
        // The first tokens come while the others' prompts are read.
        let skipped = 16;
        let windows = |played: &Played| -> Vec<f64> {
            let times = &played.times[skipped..];
            times.windows(WINDOW + 1).map(|pair| (pair[WINDOW] - pair[0]) as f64).collect()
        };
        // Prompts are read in between: the target alone is compared where it has most of them to read, too.
        let usual = windows(alone).into_iter().fold(0.0, f64::max);
        let speeds: Vec<f64> = windows(self).iter().map(|own| usual / own).collect();
        let worst = speeds.iter().copied().fold(f64::INFINITY, f64::min);
        (worst, speeds[speeds.len() - 1])
    }

    /// All tokens' speed over the target's alone.
    fn speed(&self, alone: &Played) -> f64 {
        let end = |played: &Played| played.times[played.times.len() - 1] as f64;
        end(alone) / end(self)
    }
}

fn play(scene: &Scene) -> Played {
    let mut random = Random(scene.seed);
    let pair = Pair { salt: random.next(), agreement: 0, memory: 3 };
    let (mut target, mut draft) = (Toy::target(pair), Toy::draft(pair));
    let positions = scene.tokens + scene.prompt as u32 + 8;
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
        prefixes: Prefixes::Forget,
    };
    let mut scheduler = Scheduler::new(config, Box::new(|_| Box::new(Silent)));
    let (mut now, mut stumbled, mut jobs) = (0, 0, 0);
    let (mut times, mut events) = (Vec::new(), Vec::new());
    let mut under_way: Vec<UnderWay> = Vec::new();
    let mut prompts = Random(scene.seed ^ 0x51);
    let mut ask = |id: u64| {
        let params = GenerationParams {
            max_tokens: Some(scene.tokens),
            ignore_eos: true,
            ..GenerationParams::default()
        };
        let prompt = prompts.tokens(scene.prompt);
        Event::Admit(Admission { sequence: SequenceId(id), prompt, params })
    };
    events.extend((0..scene.clients).map(&mut ask));
    let mut asked = scene.clients;
    loop {
        let mut next = Vec::new();
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
                            draft.pair.agreement =
                                (scene.agreement)(ask.sequence.0, ask.base as usize);
                            missed += ask.tokens.len() as u64 - 1;
                            let mut picks =
                                draft.extend(place, &ask.tokens, s.steps, &ask.sampling);
                            // Sure of itself, with or without reason.
                            picks.iter_mut().for_each(|pick| pick.probability = 0.9);
                            let ran = if scene.runs_on { s.steps } else { picks.len() as u32 };
                            steps = steps.max(u64::from(ran));
                            drafted.push(Drafted { steps: ran, picks });
                        }
                        let usual = scene.start + steps * scene.step + missed * scene.missed;
                        (usual, Event::DraftDone { ticket, drafted })
                    }
                    Action::Emit { tokens, .. } => {
                        times.extend(tokens.iter().map(|_| now - stumbled));
                        continue;
                    }
                    Action::Finish { .. } if asked < scene.requests => {
                        next.push(ask(asked));
                        asked += 1;
                        continue;
                    }
                    Action::Finish { .. } => return Played { times, scheduler },
                    _ => continue,
                };
                let lasts = scene.lasts(usual, (now, jobs), &mut random);
                jobs += 1;
                let held_up = scene.held_up(&event, (now, lasts), &mut under_way);
                under_way.push((now + lasts + held_up, lasts.saturating_sub(usual), event));
            }
        }
        events.extend(next);
        if !events.is_empty() {
            continue;
        }
        let next = (0..under_way.len()).min_by_key(|&i| under_way[i].0);
        let (at, longer, event) = under_way.swap_remove(next.unwrap());
        now = at;
        if scene.units == Units::Shared && !matches!(scene.noise, Noise::Even(_)) {
            stumbled += longer;
        }
        events.push(event);
    }
}

const POLICIES: [fn() -> DraftPolicy; 3] = [
    || DraftPolicy::sequential(15).by_worth(),
    || DraftPolicy::sequential(4).guarded(),
    || DraftPolicy::overlap(15, 2, 1).by_worth(),
];

/// A draft of random weights, of any speed, on units of any steepness, for one request and for four.
#[test]
fn a_draft_that_is_never_right_costs_a_few_percent_at_most() {
    let mut worst = f64::INFINITY;
    for seed in 0..4 {
        for (row, step) in [(20_000, 50_000), (100_000, 80_000), (500_000, 300_000), (0, 1_500_000)]
        {
            for (clients, units) in [(1, Units::Shared), (4, Units::Shared), (1, Units::Separate)] {
                for policy in POLICIES.map(|policy| policy()) {
                    let overlaps = matches!(policy.mode, DecodingMode::Overlap { .. });
                    if overlaps != (units == Units::Separate) {
                        continue;
                    }
                    for agreement in [|_, _| 0, |_, _| 10] as [fn(u64, usize) -> u64; 2] {
                        let base = Scene { requests: clients, ..Scene::new(seed) };
                        let base = Scene { step, missed: step / 10, ..base };
                        let scene = Scene { row, clients, units, policy, agreement, ..base };
                        let (found, _) = play(&scene).speeds(&scene.alone());
                        let least = if clients == 1 { LEAST } else { LEAST_ELSEWHERE };
                        assert!(found >= least, "{found} of the target alone: {scene:?}");
                        worst = worst.min(found);
                    }
                }
            }
        }
    }
    assert!(worst < 1.0, "a bad draft that costs nothing proves nothing");
}

/// A draft on a unit of its own costs the target no wait, but what both read of one memory: it is charged for that, too.
#[test]
fn a_draft_that_holds_up_the_target_beside_it_is_charged_for_it() {
    let policies =
        [DraftPolicy::overlap(15, 2, 1).by_worth(), DraftPolicy::overlap(4, 2, 1).guarded()];
    for (seed, policy) in (0..8).flat_map(|seed| policies.map(|policy| (seed, policy))) {
        for (contention, step) in [(6, 150_000), (12, 300_000), (30, 400_000)] {
            let base =
                Scene { policy, contention, step, units: Units::Separate, ..Scene::short(seed, 1) };
            let bad = Scene { row: 30_000, missed: step / 10, requests: 120, ..base };
            let (worst, _) = play(&bad).speeds(&bad.alone());
            assert!(worst >= LEAST, "{worst} of the target alone: {bad:?}");
            let good = Scene { agreement: |_, _| 88, ..bad };
            let speed = play(&good).speed(&good.alone());
            assert!(speed > 1.2, "{speed}: {good:?}");
        }
    }
}

/// What the guard knows outlives a request: a window of 500 tokens spans eight of these.
#[test]
fn short_requests_are_guarded_together() {
    for (seed, clients) in (0..4).flat_map(|seed| [(seed, 1), (seed, 4)]) {
        for policy in POLICIES[..2].iter().map(|policy| policy()) {
            let scene = Scene { policy, ..Scene::short(seed, clients) };
            let played = play(&scene);
            let (worst, _) = played.speeds(&scene.alone());
            assert!(worst >= LEAST, "{worst} of the target alone: {scene:?}");
            assert_ne!(played.scheduler.pacing().guard, GuardState::On);
        }
    }
}

/// Twelve requests that the draft knows how to go on, twelve that it does not, and so on.
#[test]
fn a_draft_that_is_good_on_one_domain_only_is_used_there() {
    for (seed, clients) in (0..4).flat_map(|seed| [(seed, 1), (seed, 4)]) {
        let agreement = |request: u64, _| if (request / 24).is_multiple_of(2) { 92 } else { 1 };
        let scene = Scene { agreement, ..Scene::short(seed, clients) };
        let scene = Scene { requests: 96 * clients.max(2), ..scene };
        let (played, alone) = (play(&scene), scene.alone());
        let (worst, _) = played.speeds(&alone);
        assert!(worst >= LEAST_ELSEWHERE, "{worst} at worst: {scene:?}");
        let speed = played.speed(&alone);
        assert!(speed > 1.0, "{speed} altogether: {scene:?}");
    }
}

/// Good, then useless, then good again.
#[test]
fn drafting_stops_where_a_text_turns_hard_and_comes_back_where_it_turns_easy() {
    for (seed, clients) in (0..10).flat_map(|seed| [(seed, 1), (seed, 4)]) {
        for policy in POLICIES[..2].iter().map(|policy| policy()) {
            let agreement = |_, at| if (1500..1900).contains(&at) { 1 } else { 92 };
            let base = Scene { clients, requests: clients, ..Scene::new(seed) };
            let scene = Scene { policy, agreement, tokens: 5000, ..base };
            let played = play(&scene);
            let (worst, last) = played.speeds(&scene.alone());
            let least = if clients == 1 { LEAST } else { LEAST_ELSEWHERE };
            assert!(worst >= least, "{worst} at worst: {scene:?}");
            let gain = if clients == 1 { 1.2 } else { 1.0 };
            assert!(last > gain, "{last} at the end: {scene:?}");
        }
    }
}

const STUMBLES: [Noise; 4] = [
    Noise::Stalls { every: 20, times: 20 },
    Noise::Stalls { every: 5, times: 4 },
    Noise::Phases,
    Noise::SlowStart(60),
];

/// On a machine that holds jobs up now and then, a bad draft is found out as on a quiet one.
#[test]
fn a_stumbling_machine_does_not_hide_a_bad_draft() {
    for (seed, clients) in (0..4).flat_map(|seed| [(seed, 1), (seed, 4)]) {
        for (policy, noise) in
            POLICIES[..2].iter().flat_map(|policy| STUMBLES.map(|noise| (policy(), noise)))
        {
            for scene in [
                Scene { requests: clients, clients, ..Scene::new(seed) },
                Scene::short(seed, clients),
            ] {
                let scene = Scene { policy, noise, ..scene };
                let (worst, _) = play(&scene).speeds(&scene.alone());
                let least =
                    if matches!(noise, Noise::Phases) { LEAST_IN_PHASES } else { LEAST_ELSEWHERE };
                assert!(worst >= least, "{worst} at worst: {scene:?}");
            }
        }
    }
}

/// Nor does a good draft cost anything there: slow jobs, and a slow first request, may at most eat up what it brings.
#[test]
fn a_stumbling_machine_does_not_condemn_a_good_draft() {
    for (seed, clients) in (0..4).flat_map(|seed| [(seed, 1), (seed, 4)]) {
        for noise in STUMBLES {
            let agreement = |_, _| 85;
            let scene = Scene { noise, agreement, ..Scene::short(seed, clients) };
            let (played, alone) = (play(&scene), scene.alone());
            let speed = played.speed(&alone);
            assert!(speed > 0.99, "{speed}: {scene:?}");
        }
    }
}

/// A GPU takes long to start a job, and for a prompt hardly longer than for a row: what its first jobs take must not be held
/// against the prompts of all others. Nor must a single pass that was held up while nothing else was known of its width.
#[test]
fn a_draft_that_is_slow_to_start_is_used_where_it_pays() {
    for policy in [POLICIES[0](), DraftPolicy::sequential(3).guarded()] {
        let stalls = Noise::Stalls { every: 8, times: 3 };
        for (noise, each, mean) in [(Noise::Even(4), 1.1, 1.2), (stalls, 1.0, 1.1)] {
            let speed = |seed| {
                let gpu =
                    Scene { pass: 400_000, row: 8_000, start: 170_000, ..Scene::short(seed, 1) };
                let gpu = Scene { step: 107_000, missed: 5_000, runs_on: true, ..gpu };
                let short =
                    Scene { prompt: 18, tokens: 14, requests: 300, agreement: |_, _| 88, ..gpu };
                let scene = Scene { policy, noise, ..short };
                play(&scene).speed(&scene.alone())
            };
            let speeds: Vec<f64> = (0..16).map(speed).collect();
            assert!(speeds.iter().all(|speed| *speed > each), "{speeds:?}: {policy:?}, {noise:?}");
            let found = speeds.iter().sum::<f64>() / 16.0;
            assert!(found > mean, "{found}: {speeds:?}: {policy:?}, {noise:?}");
        }
    }
}

/// The stop rule against every fixed depth, for drafts of several qualities and costs. These drafts' confidence says
/// nothing, so that the rule can only find the best depth, and pays for finding it.
#[test]
fn the_stop_rule_is_about_as_fast_as_the_best_fixed_depth() {
    let qualities: [fn(u64, usize) -> u64; 3] = [|_, _| 60, |_, _| 80, |_, _| 93];
    for (agreement, step) in qualities.into_iter().flat_map(|a| [(a, 40_000), (a, 150_000)]) {
        let time = |policy| {
            let base = Scene { step, missed: step / 10, ..Scene::new(7) };
            let scene = Scene { policy, agreement, tokens: 4000, ..base };
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
    let drafted = |clients| {
        let (agreement, requests): (fn(u64, usize) -> u64, _) = (|_, _| 80, clients);
        let base = Scene { requests, row: 350_000, tokens: 1500, ..Scene::new(3) };
        let scene = Scene { clients, agreement, ..base };
        let played = play(&scene);
        let (worst, last) = played.speeds(&scene.alone());
        assert!(worst >= 0.95 && last >= 0.95, "{worst} and {last} with {clients}");
        let depths = played.scheduler.pacing().depths;
        let passes: u64 = depths.iter().sum();
        depths.iter().zip(0u64..).map(|(n, depth)| n * depth).sum::<u64>() as f64 / passes as f64
    };
    let (alone, together) = (drafted(1), drafted(8));
    assert!(alone > 0.4 && together < alone / 2.0, "{alone} alone, {together} together");
}

#[test]
fn the_same_events_give_the_same_decisions() {
    let agreement = |_, _| 70;
    let scene = Scene { agreement, ..Scene::new(11) };
    assert_eq!(play(&scene).times, play(&scene).times);
}
