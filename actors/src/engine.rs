//! The engine: a loaded pair, a plan, and the actors that run it, behind one handle that can be cloned.
//!
//! *Invariant:* all actors of an engine share one thread of their own; everything outside talks to them by message.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use actix::prelude::{Actor, Addr, Arbiter, ArbiterHandle};
use outrider_devices::{SequenceId, SlotLimits};
use outrider_observability::{HttpMetrics, PlanMetrics, Registry, RejectionReason, RunningPlan};
use outrider_pipeline::scheduler::{Admission, GenerationParams, Prefixes, Units};
use outrider_pipeline::template::UnixSeconds;
use outrider_pipeline::tokenizer::AddBos;
use outrider_pipeline::{
    Conversation, DraftPolicy, GenerationPrompt, Guarding, Message, SpecialTokens, TemplateError,
    Tokenizer, TokenizerError,
};
use outrider_plans::swap::Forecasted;
use outrider_plans::{
    CacheFormat, CacheLimits, ModelRole, Models, PartitionPlan, PlanContext, PlanEpoch, PlanError,
    PlanSpec, Proposal, Reason, SwapError, SwapReport, UnitId,
};
use tokio::sync::{mpsc, oneshot, watch};

use crate::coordinator::Coordinator;
use crate::fleet;
use crate::frame::{rules_as_written, rules_with_guard, scheduler};
use crate::library::Library;
use crate::messages::{
    Cancel, CancelCause, Dissolve, Drain, Generate, Inspect, PreviewPlan, ProposePlan, UnitError,
};
use crate::meter::{FleetMeter, TimingTap};
use crate::office::Successor;
use crate::pair::{LoadError, Pair};
use crate::request::{Refusal, RequestEvent};
use crate::supervisor::{Blueprint, HistoryEntry, Opening, PlanView, RestartPolicy, Supervisor};
use crate::unit::{Cores, DeviceFactory, Workplace};

/// Most rows of one batch: a prefill chunk with the decode rows of the other sequences beside it.
pub(crate) const ROWS_MAX: usize = 128;
/// Longest context used where nobody asks for one: caches of all places must fit small machines.
const CONTEXT_DEFAULT_MAX: usize = 4096;

/// Bounds of an engine.
#[derive(Clone, Copy, Debug)]
pub struct EngineLimits {
    /// Sequences decoded at one time.
    pub parallel: usize,
    /// Sequences that may wait.
    pub queue: usize,
    /// Prompt tokens of all sequences that wait.
    pub queue_tokens: usize,
    /// What becomes of the caches of finished sequences.
    pub prefixes: Prefixes,
    /// Positions of one sequence; `None` takes the pair's own, up to 4096.
    pub context: Option<usize>,
    /// How keys and values are kept.
    pub cache: CacheFormat,
}

impl Default for EngineLimits {
    fn default() -> Self {
        Self {
            parallel: 8,
            queue: 256,
            queue_tokens: 65_536,
            prefixes: Prefixes::Reuse,
            context: None,
            cache: CacheFormat::F16,
        }
    }
}

impl EngineLimits {
    /// Positions of one sequence of this pair.
    pub fn context_of(&self, pair: &Pair) -> usize {
        let trained = pair.context_length();
        self.context.unwrap_or(trained.min(CONTEXT_DEFAULT_MAX)).min(trained)
    }

    /// What plans for this pair are checked against on this machine.
    pub fn plan_context(&self, pair: &Pair) -> PlanContext {
        PlanContext {
            machine: fleet::machine(),
            target: pair.shape(ModelRole::Target).expect("a pair has a target"),
            draft: pair.shape(ModelRole::Draft),
            caches: CacheLimits {
                sequences_max: self.parallel,
                positions_max: self.context_of(pair),
                format: self.cache,
            },
        }
    }

    /// The same as devices are told.
    pub fn slots(&self, pair: &Pair) -> SlotLimits {
        SlotLimits {
            sequences_max: self.parallel,
            positions_max: self.context_of(pair),
            rows_max: ROWS_MAX,
            cache: match self.cache {
                CacheFormat::F16 => outrider_devices::CacheFormat::F16,
                CacheFormat::Q8 => outrider_devices::CacheFormat::Q8,
            },
        }
    }
}

/// Why an engine did not start.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// A unit could not run its stages.
    #[error(transparent)]
    Unit(#[from] UnitError),
    /// The plan's models.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The engine's thread ended.
    #[error("the engine's thread ended while it was starting")]
    Ended,
}

/// Why a plan in words is none for this engine.
#[derive(Debug, thiserror::Error)]
pub enum PlanTextError {
    /// The words.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A model that it names.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// Open requests would outgrow the draft.
    #[error(
        "{draft} knows {known} positions and this service has {served}: take another draft, or start the service with \
         --context {known}"
    )]
    ShortDraft {
        /// The draft.
        draft: String,
        /// Its positions.
        known: usize,
        /// Positions of a sequence here.
        served: usize,
    },
    /// The service is ending.
    #[error("the engine has ended")]
    Ended,
}

/// Why words did not become a prompt.
#[derive(Debug, thiserror::Error)]
pub enum PromptError {
    /// There is no template, or it refused the messages.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// The tokenizer refused the text.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
}

/// A running engine.
#[derive(Clone)]
pub struct Engine {
    shared: Arc<Shared>,
}

struct Shared {
    pair: Pair,
    library: Arc<Library>,
    limits: EngineLimits,
    successor: Option<Successor>,
    predecessor: Weak<Shared>,
    view: watch::Receiver<Arc<PlanView>>,
    plan_context: PlanContext,
    coordinator: Addr<Coordinator>,
    registry: Arc<Registry>,
    supervisor: Addr<Supervisor>,
    arbiter: ArbiterHandle,
    home: Home,
    seeds: AtomicU64,
    started_at_s: u64,
    draining: AtomicBool,
}

/// An engine's place among those that a service runs one after the other.
#[derive(Clone)]
pub struct Standing {
    /// The number of its first plan.
    pub epoch: PlanEpoch,
    /// Why that runs.
    pub reason: Reason,
    /// When it was wanted.
    pub proposed: Instant,
    /// What ran before.
    pub history: VecDeque<HistoryEntry>,
    /// The service's models; `None` makes a library of the pair.
    pub library: Option<Arc<Library>>,
    /// Starts the next engine; `None` where there is to be none.
    pub successor: Option<Successor>,
    /// The engine before.
    pub predecessor: Option<Engine>,
}

impl Default for Standing {
    fn default() -> Self {
        Self {
            epoch: PlanEpoch(1),
            reason: Reason::Start,
            proposed: Instant::now(),
            history: VecDeque::new(),
            library: None,
            successor: None,
            predecessor: None,
        }
    }
}

/// Everything that an engine is made of.
#[derive(Clone)]
pub struct EngineOptions {
    /// The models that the service is started with.
    pub pair: Pair,
    /// What runs where, checked against these models.
    pub plan: PartitionPlan,
    /// Bounds.
    pub limits: EngineLimits,
    /// What everything reports to.
    pub registry: Arc<Registry>,
    /// Makes the devices of these units, whatever a plan says of them; others are made as the plan says.
    pub factories: BTreeMap<UnitId, DeviceFactory>,
    /// What plans are checked against.
    pub context: PlanContext,
    /// Bytes of main memory that are free now.
    pub memory_free: Arc<dyn Fn() -> u64 + Send + Sync>,
    /// Where the units' workers work.
    pub workplace: Workplace,
    /// Where the actors live.
    pub home: Home,
    /// When a unit that is lost again and again is given up.
    pub restart: RestartPolicy,
    /// Whether plans with a fixed depth stop drafting while it makes them slower. (Those that say "auto" do.)
    pub guarding: Guarding,
    /// Who is told of every job, if anybody is.
    pub timings: Option<TimingTap>,
    /// Its place among the engines of its service.
    pub standing: Standing,
}

impl EngineOptions {
    /// The devices that the plan names, on this machine.
    pub fn new(
        pair: Pair,
        plan: PartitionPlan,
        limits: EngineLimits,
        registry: Arc<Registry>,
    ) -> Self {
        let context = limits.plan_context(&pair);
        Self::in_context(pair, plan, limits, registry, context)
    }

    /// The same where it is known what there is: to look for it again takes a while.
    pub fn in_context(
        pair: Pair,
        plan: PartitionPlan,
        limits: EngineLimits,
        registry: Arc<Registry>,
        context: PlanContext,
    ) -> Self {
        Self {
            pair,
            plan,
            limits,
            registry,
            factories: BTreeMap::new(),
            context,
            memory_free: Arc::new(fleet::memory_free),
            workplace: Workplace::Threads,
            home: Home::Own,
            restart: RestartPolicy::default(),
            guarding: Guarding::Off,
            timings: None,
            standing: Standing::default(),
        }
    }
}

/// The thread that an engine's actors share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Home {
    /// One of their own, which ends with the engine.
    Own,
    /// The caller's, whose clock a simulation controls.
    Current,
}

impl Engine {
    /// Starts all actors and installs every stage. Runs inside an actix system.
    pub async fn start(options: EngineOptions) -> Result<Self, EngineError> {
        let EngineOptions { pair, mut plan, limits, registry, factories, restart, .. } = options;
        let EngineOptions { context, memory_free, workplace, home, timings, guarding, .. } =
            options;
        let Standing { epoch, reason, proposed, history, library, successor, predecessor } =
            options.standing;
        let library = library.unwrap_or_else(|| Library::new(pair));
        plan.models = library.names(&plan.models, &Models::default());
        let pair = library.pair(&plan.models)?;
        let rules: fn(&PartitionPlan) -> (DraftPolicy, Units) = match guarding {
            Guarding::On => rules_with_guard,
            Guarding::Off => rules_as_written,
        };
        let positions_max = limits.context_of(&pair);
        let mut context = pair.plan_context(&context);
        context.caches.positions_max = positions_max;
        let scheduler = scheduler(&pair, (&plan, rules(&plan).0), limits, positions_max);
        let slots = limits.slots(&pair);
        let blueprint = Blueprint {
            context: context.clone(),
            memory_free,
            factories,
            workplace,
            cores: Cores::new(),
            library: Arc::clone(&library),
            successor: successor.clone(),
            limits: BTreeMap::from([(ModelRole::Target, slots), (ModelRole::Draft, slots)]),
            rules,
            meter: FleetMeter::new(Arc::clone(&registry)).with_timings(timings),
            restart,
        };
        registry.plan.running(RunningPlan::new(&plan, epoch.0));
        let requests = registry.requests.clone();
        let metrics = (registry.speculation.clone(), registry.plan.clone());
        let before = PlanView::before(plan.clone(), pair.clone(), epoch, history);
        let (changed, view) = watch::channel(Arc::new(before));
        let (started, outcome) = oneshot::channel();
        let start = async move {
            let coordinator = Coordinator::new(scheduler, requests, metrics);
            // Apart from those of an engine before, so that a name means one request.
            let coordinator = coordinator.numbering_from((epoch.0 - 1) << 32).start();
            let opening = Opening { plan, epoch, reason, proposed };
            let supervisor =
                Supervisor::start(opening, blueprint, coordinator.clone(), changed).await;
            // If the receiver is gone, so is the engine that wanted these.
            let _ = started.send(supervisor.map(|supervisor| (coordinator, supervisor)));
        };
        let arbiter = match home {
            Home::Own => Arbiter::new().handle(),
            Home::Current => Arbiter::current(),
        };
        arbiter.spawn(start);
        let outcome = outcome.await.map_err(|_| EngineError::Ended);
        let (coordinator, supervisor) = match outcome.and_then(|outcome| Ok(outcome?)) {
            Ok(started) => started,
            Err(error) => {
                if home == Home::Own {
                    arbiter.stop();
                }
                return Err(error);
            }
        };
        // Reading and packing two models leaves much behind that nobody needs any more.
        outrider_devices::reclaim::free_lists();
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let shared = Shared {
            pair,
            library,
            limits,
            successor,
            predecessor: predecessor
                .map_or_else(Weak::new, |engine| Arc::downgrade(&engine.shared)),
            view,
            plan_context: context,
            coordinator,
            supervisor,
            registry,
            arbiter,
            home,
            seeds: AtomicU64::new(since_epoch.as_nanos() as u64),
            started_at_s: since_epoch.as_secs(),
            draining: AtomicBool::new(false),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Asks for text. The events end with `Finished`; dropping the receiver cancels the request.
    pub async fn generate(
        &self,
        prompt: Vec<u32>,
        params: GenerationParams,
    ) -> Result<(SequenceId, mpsc::Receiver<RequestEvent>), Refusal> {
        let room = self.context_length().saturating_sub(prompt.len());
        let tokens_max = params.max_tokens.map_or(room, |max| room.min(max as usize));
        // One event for each token at most, text held back, and the end.
        let (events, receiver) = mpsc::channel(tokens_max + 3);
        let admission = Admission { sequence: SequenceId(0), prompt, params };
        match self.shared.coordinator.send(Generate { admission, events }).await {
            Ok(answer) => answer.map(|sequence| (sequence, receiver)),
            Err(_) => Err(Refusal::Unavailable { reason: "the coordinator has ended".into() }),
        }
    }

    /// Ends a request. False if it is not open.
    pub async fn cancel(&self, sequence: SequenceId) -> bool {
        self.cancel_for(sequence, CancelCause::Asked).await
    }

    /// Ends a request whose time is up.
    pub async fn expire(&self, sequence: SequenceId) -> bool {
        self.cancel_for(sequence, CancelCause::Deadline).await
    }

    /// Also of an engine before, which finishes what it has begun.
    async fn cancel_for(&self, sequence: SequenceId, cause: CancelCause) -> bool {
        let mut engine = self.clone();
        loop {
            let cancel = Cancel { sequence, cause };
            if engine.shared.coordinator.send(cancel).await.unwrap_or(false) {
                return true;
            }
            let Some(shared) = engine.shared.predecessor.upgrade() else { return false };
            engine = Self { shared };
        }
    }

    /// Whether it runs nothing and nothing waits.
    pub(crate) async fn is_idle(&self) -> bool {
        let snapshot = self.shared.coordinator.send(Inspect).await;
        snapshot.map_or(true, |snapshot| snapshot.running + snapshot.waiting == 0)
    }

    /// How many hold it.
    pub(crate) fn holders(&self) -> usize {
        Arc::strong_count(&self.shared)
    }

    /// Whether both are one.
    pub(crate) fn is(&self, other: &Engine) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }

    /// Who starts the next engine.
    pub(crate) fn successor(&self) -> Option<Successor> {
        self.shared.successor.clone()
    }

    /// Frees all units.
    pub(crate) async fn dissolve(&self) {
        // A supervisor that has ended has no units.
        let _ = self.shared.supervisor.send(Dissolve).await;
    }

    /// Takes no more requests from now on; open ones go on.
    pub async fn drain(&self) {
        self.shared.draining.store(true, Ordering::Relaxed);
        // A coordinator that has ended takes no requests either.
        let _ = self.shared.coordinator.send(Drain).await;
    }

    /// Whether requests can be served; if not, why.
    pub async fn health(&self) -> Result<(), String> {
        match self.shared.coordinator.send(Inspect).await {
            Ok(snapshot) => snapshot.ready,
            Err(_) => Err("the coordinator has ended".into()),
        }
    }

    /// Whether a request that is sent now would be taken; if not, why.
    pub async fn ready(&self) -> Result<(), String> {
        match self.shared.draining.load(Ordering::Relaxed) {
            true => Err("the service is shutting down".into()),
            false => self.health().await,
        }
    }

    /// Whether the engine answers at all.
    pub async fn answers(&self) -> bool {
        self.shared.coordinator.send(Inspect).await.is_ok()
    }

    /// A conversation as the model reads it: the template applied.
    pub fn chat_text(&self, messages: &[Message]) -> Result<String, PromptError> {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let text = self.shared.pair.target.needed_template()?.render(&Conversation {
            messages,
            generation_prompt: GenerationPrompt::Add,
            now: Some(UnixSeconds(since_epoch.as_secs())),
            variables: &BTreeMap::new(),
        })?;
        Ok(text)
    }

    /// The prompt of a conversation: template applied, special tokens parsed.
    pub fn chat_prompt(&self, messages: &[Message]) -> Result<Vec<u32>, PromptError> {
        let text = self.chat_text(messages)?;
        Ok(self.tokenizer().encode(&text, SpecialTokens::Parse)?)
    }

    /// The prompt of a text as it is: special tokens parsed, and the token that begins a text before it, if the model
    /// wants one and it is not there.
    pub fn raw_prompt(&self, text: &str) -> Result<Vec<u32>, PromptError> {
        let tokenizer = self.tokenizer();
        let mut tokens = tokenizer.encode(text, SpecialTokens::Parse)?;
        if let (AddBos::Yes, Some(bos)) = (tokenizer.add_bos(), tokenizer.bos())
            && tokens.first() != Some(&bos)
        {
            tokens.insert(0, bos);
        }
        Ok(tokens)
    }

    /// A seed that this process has not handed out before.
    pub fn fresh_seed(&self) -> u64 {
        self.shared.seeds.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed)
    }

    /// The temperature of requests that name none: greedy, so that an answer is reproducible unless asked otherwise.
    pub fn temperature(&self) -> f32 {
        0.0
    }

    /// The target's tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        self.shared.pair.target.tokenizer()
    }

    /// The name under which the target is served: its file's, without folder and ending.
    pub fn model_name(&self) -> &str {
        served_name(self.shared.pair.target.name())
    }

    /// The draft's name.
    pub fn draft_name(&self) -> Option<String> {
        let view = self.plan_view();
        view.pair.draft.as_ref().map(|draft| served_name(draft.name()).to_owned())
    }

    /// Tokens that the models know.
    pub fn vocabulary(&self) -> usize {
        self.shared.pair.target.config().shape.vocabulary
    }

    /// Positions of one sequence.
    pub fn context_length(&self) -> usize {
        self.shared.plan_context.caches.positions_max
    }

    /// The running plan.
    pub fn plan(&self) -> Arc<PartitionPlan> {
        Arc::clone(&self.plan_view().plan)
    }

    /// What the running plan and its forecasts report to.
    pub fn plan_metrics(&self) -> &PlanMetrics {
        &self.shared.registry.plan
    }

    /// The running plan with its number, and how it came to run.
    pub fn plan_view(&self) -> Arc<PlanView> {
        Arc::clone(&self.shared.view.borrow())
    }

    /// What plans for the running models are checked against.
    pub fn plan_context(&self) -> PlanContext {
        self.plan_view().pair.plan_context(&self.shared.plan_context)
    }

    /// A plan in words, checked against this machine and the models that it names; those that it does not name are those
    /// that run. `file` is named in errors.
    ///
    /// # Errors
    /// What is wrong with the words or with the models.
    pub async fn read_plan(
        &self,
        text: &str,
        file: Option<&str>,
    ) -> Result<PartitionPlan, PlanTextError> {
        let spec = PlanSpec::parse(text, file)?;
        let Shared { library, limits, plan_context, .. } = &*self.shared;
        let view = self.plan_view();
        let names = library.names(spec.models(), &view.plan.models);
        let spec = spec.with_models(names.clone());
        if names == view.plan.models {
            return Ok(spec.check(&view.pair.plan_context(plan_context))?);
        }
        let opened = {
            let (library, names) = (Arc::clone(library), names.clone());
            tokio::task::spawn_blocking(move || library.pair(&names)).await
        };
        let pair = opened.map_err(|_| PlanTextError::Ended)??;
        let mut context = pair.plan_context(plan_context);
        if names.target != view.plan.models.target {
            context.caches.positions_max = limits.context_of(&pair);
        } else if let Some(draft) = &pair.draft
            && draft.config().context < self.context_length()
        {
            let (draft, known) = (draft.name().to_owned(), draft.config().context);
            return Err(PlanTextError::ShortDraft { draft, known, served: self.context_length() });
        }
        Ok(spec.check(&context)?)
    }

    /// Runs another plan; requests go on. Answers when the swap has ended, well or not.
    pub async fn propose(&self, proposal: Proposal) -> Result<SwapReport, SwapError> {
        let ended = self.shared.supervisor.send(ProposePlan(proposal)).await;
        ended.unwrap_or(Err(SwapError::Ended))
    }

    /// What a proposal would lead to.
    pub async fn preview(&self, proposal: Proposal) -> Result<Forecasted, SwapError> {
        let answer = self.shared.supervisor.send(PreviewPlan(proposal)).await;
        answer.unwrap_or(Err(SwapError::Ended))
    }

    /// Runs the plan again that ran before the running one.
    pub async fn roll_back(&self) -> Result<SwapReport, SwapError> {
        let view = self.plan_view();
        let plan = view.earlier().ok_or(SwapError::NoEarlier)?.clone();
        let (expected, reason) = (Some(view.epoch), Reason::Rollback);
        self.propose(Proposal { plan, expected, reason }).await
    }

    /// Who takes proposals, for a planner.
    pub fn proposals(&self) -> actix::prelude::Recipient<ProposePlan> {
        self.shared.supervisor.clone().recipient()
    }

    /// What the units did, as a trace for Perfetto; the last `last_us` microseconds alone if asked for.
    pub fn timeline(&self, last_us: Option<u64>) -> String {
        self.shared.registry.timeline.to_chrome_json(last_us)
    }

    /// When the engine started, seconds since 1970.
    pub fn started_at_s(&self) -> u64 {
        self.shared.started_at_s
    }

    /// What HTTP requests report to.
    pub fn http_metrics(&self) -> &HttpMetrics {
        &self.shared.registry.http
    }

    /// Counts a request that was turned away.
    pub fn count_rejection(&self, reason: RejectionReason) {
        self.shared.registry.requests.rejections.increment(reason);
    }

    /// All metrics in Prometheus's text format.
    pub async fn render_metrics(&self) -> String {
        self.shared.registry.render()
    }

    /// Moves recorded samples into their buckets, so that the metrics stay small also while nobody reads them. Wants to
    /// be called every few seconds.
    pub fn tidy_metrics(&self) {
        self.shared.registry.run_upkeep();
    }

    /// Ends the engine's thread after the messages that it has. Open requests end unanswered.
    pub fn stop(&self) {
        if self.shared.home == Home::Own {
            self.shared.arbiter.stop();
        }
    }
}

/// A model's name as clients say it: the last part of its file's, without the format's ending.
fn served_name(name: &str) -> &str {
    match name {
        "shipped target" => "outrider-en-de",
        "shipped draft" => "outrider-en-de-draft",
        file => {
            let last = Path::new(file).file_name().and_then(|last| last.to_str()).unwrap_or(file);
            let stem = [".gguf", ".safetensors"].iter().find_map(|end| last.strip_suffix(end));
            stem.unwrap_or(last)
        }
    }
}
