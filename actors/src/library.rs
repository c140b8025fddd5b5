//! The models that plans name: opened when a plan asks for them, given up when none does.
//!
//! *Invariant:* a model has one name here: the one that the service was started with has none, whatever a plan calls it, so
//! that naming it changes nothing. Everything handed out has been checked as a pair.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use outrider_devices::Subgraph;
use outrider_pipeline::{Model, ModelSource, check_pair};
use outrider_plans::{Installed, ModelRole, Models};

use crate::pair::{LoadError, Pair, cut};

/// What a plan calls the models in the binary.
const SHIPPED: &str = "shipped";

/// Where the model is that a plan names so.
pub fn source(role: ModelRole, name: &str) -> ModelSource {
    match name {
        SHIPPED => ModelSource::Shipped(role),
        file => ModelSource::File(PathBuf::from(file)),
    }
}

/// The models of a service.
pub struct Library {
    first: Pair,
    opened: Mutex<BTreeMap<(ModelRole, String), Arc<Model>>>,
}

impl Library {
    /// A library with the models that the service is started with.
    pub fn new(first: Pair) -> Arc<Self> {
        Arc::new(Self { first, opened: Mutex::default() })
    }

    /// The models that the service was started with.
    pub fn first(&self) -> &Pair {
        &self.first
    }

    /// The names of models as plans are compared by: files by their full path, those that the service was started with by
    /// none. `named` goes before `running`, the models of the running plan.
    pub fn names(&self, named: &Models, running: &Models) -> Models {
        let name = |role: ModelRole| match named.of(role) {
            Some(name) => self.name(role, name),
            None => running.of(role).map(str::to_owned),
        };
        Models { target: name(ModelRole::Target), draft: name(ModelRole::Draft) }
    }

    fn name(&self, role: ModelRole, name: &str) -> Option<String> {
        let full = |path: &str| {
            let path = Path::new(path);
            // A file that is not there is named in the error as it was asked for.
            path.canonicalize().map_or_else(|_| path.to_owned(), PathBuf::from)
        };
        let first = self.first.model(role).map(|model| model.name());
        if name == SHIPPED {
            let shipped = format!("{SHIPPED} {role}");
            return (first != Some(&shipped)).then(|| name.to_owned());
        }
        let file = full(name);
        let is_first = first.is_some_and(|first| full(first) == file);
        (!is_first).then(|| file.display().to_string())
    }

    /// The pair of these names, as [`Library::names`] gives them. Opens what is not open: for a thread that may wait.
    ///
    /// # Errors
    /// A file that is no model, or two models that are no pair.
    pub fn pair(&self, names: &Models) -> Result<Pair, LoadError> {
        let role = |role: ModelRole| match names.of(role) {
            None => Ok(self.first.model(role).cloned()),
            Some(name) => self.open(role, name).map(Some),
        };
        let target = role(ModelRole::Target)?.expect("a pair has a target");
        let draft = role(ModelRole::Draft)?;
        if let (Some(draft), false) = (&draft, names.are_the_first()) {
            check_pair(&target, draft)?;
        }
        Ok(Pair { target, draft })
    }

    /// What a plan has installed, to be compiled. Opens the model if nobody has it open.
    ///
    /// Panics if the stage is not a part of its model; plans are checked against these models.
    ///
    /// # Errors
    /// A file that is no model any more.
    pub fn subgraph(&self, installed: &Installed) -> Result<Arc<Subgraph>, LoadError> {
        let role = installed.stage.role;
        let model = match &installed.model {
            None => Arc::clone(self.first.model(role).expect("the plan was checked")),
            Some(name) => self.open(role, name)?,
        };
        Ok(cut(&model, installed.stage))
    }

    fn open(&self, role: ModelRole, name: &str) -> Result<Arc<Model>, LoadError> {
        let key = (role, name.to_owned());
        if let Some(model) = self.opened().get(&key) {
            return Ok(Arc::clone(model));
        }
        let model = Arc::new(Model::open(&source(role, name))?);
        let mut opened = self.opened();
        // Whoever runs a model holds it; the others would keep their files from being freed.
        opened.retain(|_, model| Arc::strong_count(model) > 1);
        opened.insert(key, Arc::clone(&model));
        Ok(model)
    }

    fn opened(&self) -> MutexGuard<'_, BTreeMap<(ModelRole, String), Arc<Model>>> {
        // Nothing panics between two halves of a change.
        self.opened.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
