//! `outrider models`: what a file contains, and whether a pair fits together.

use std::path::PathBuf;

use clap::Subcommand;
use outrider_pipeline::{Model, ModelSource, check_pair};
use outrider_plans::ModelRole;

use super::{CliError, print_json};

#[derive(Debug, Subcommand)]
pub(super) enum ModelsCommand {
    /// Say what a model file contains.
    Inspect {
        /// GGUF file, safetensors file, or a directory with one. Default: the shipped pair.
        #[arg(value_name = "FILE")]
        file: Option<PathBuf>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Check that a target and a draft can work together. Default: the shipped pair.
    Check {
        /// Target model.
        #[arg(long, value_name = "FILE", requires = "draft")]
        target: Option<PathBuf>,
        /// Draft model.
        #[arg(long, value_name = "FILE", requires = "target")]
        draft: Option<PathBuf>,
    },
}

#[expect(clippy::print_stdout, reason = "the command's own output")]
pub(super) fn run(command: ModelsCommand) -> Result<(), CliError> {
    match command {
        ModelsCommand::Inspect { file, json } => {
            let sources = match file {
                Some(file) => vec![ModelSource::File(file)],
                None => [ModelRole::Target, ModelRole::Draft].map(ModelSource::Shipped).into(),
            };
            for source in sources {
                let summary = source.checkpoint()?.summary()?;
                if json { print_json(&summary)? } else { println!("{summary}") }
            }
        }
        ModelsCommand::Check { target, draft } => {
            let source = |file: Option<PathBuf>, role| {
                file.map_or(ModelSource::Shipped(role), ModelSource::File)
            };
            let target = Model::open(&source(target, ModelRole::Target))?;
            let draft = Model::open(&source(draft, ModelRole::Draft))?;
            check_pair(&target, &draft)?;
            println!(
                "{} can draft for {}: the same {} tokens",
                draft.name(),
                target.name(),
                target.config().shape.vocabulary
            );
        }
    }
    Ok(())
}
