//! `outrider plan`: what a plan says, and whether it is right for this machine and these models.

use clap::{Args, Subcommand};
use outrider_plans::{PartitionPlan, shipped};
use serde::Serialize;

use super::search::{self, SearchArguments};
use super::{CliError, Selection, plan_remote, print_json, select::named_plan};

#[derive(Debug, Subcommand)]
pub(super) enum PlanCommand {
    /// List the shipped plans, and whether each can run here.
    List(PlanArguments),
    /// Say what runs where under a plan, and what it needs; where a calibration holds also how fast it will be, where each
    /// microsecond goes, and what would change that. Default: the plan that would be chosen.
    Explain(PlanArguments),
    /// Find the best plan for this machine, or for a board that is not here.
    Search(SearchArguments),
    /// Give a running service another plan; requests go on.
    Apply(plan_remote::ApplyArguments),
    /// Say what a plan would change in a running service, without doing it.
    Diff(plan_remote::ApplyArguments),
    /// List what a running service ran, and how each change ended.
    History(plan_remote::ServiceArguments),
    /// Give a running service the plan again that it ran before.
    Rollback(plan_remote::ServiceArguments),
    /// Check a plan file. Exits with 1 and the line in question if it is wrong.
    Validate(PlanArguments),
}

/// A plan and the models it is for.
#[derive(Args, Debug)]
pub(super) struct PlanArguments {
    /// Plan file, or the name of a shipped plan.
    #[arg(value_name = "PLAN")]
    name: Option<String>,
    #[command(flatten)]
    selection: Selection,
    /// Requests at one time, for the forecast.
    #[arg(long, value_name = "N", default_value_t = 1)]
    concurrency: usize,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// What `plan explain --json` prints: the plan, and its forecast if there is one.
#[derive(Serialize)]
struct Explanation<'a> {
    #[serde(flatten)]
    plan: &'a PartitionPlan,
    forecast: Option<&'a search::Explained>,
}

impl PlanArguments {
    fn plan(&self) -> Result<PartitionPlan, CliError> {
        let pair = self.selection.pair()?;
        let mut selection = self.selection.clone();
        selection.plan = self.name.clone().or(selection.plan);
        selection.plan(&pair)
    }
}

#[expect(clippy::print_stdout, reason = "the command's own output")]
pub(super) fn run(command: PlanCommand) -> Result<(), CliError> {
    match command {
        PlanCommand::Explain(arguments) => {
            let plan = arguments.plan()?;
            let explained = search::explain(&plan, &arguments.selection, arguments.concurrency);
            if arguments.json {
                let forecast = explained.as_ref().ok();
                return print_json(&Explanation { plan: &plan, forecast });
            }
            println!("{plan}");
            match explained {
                Ok(explained) => explained.print(&plan),
                Err(error) => println!("no forecast: {error}"),
            }
        }
        PlanCommand::Search(arguments) => return search::run(&arguments),
        PlanCommand::Validate(arguments) => {
            let plan = arguments.plan()?;
            println!("plan {} ({}) is right for this machine", plan.name, plan.fingerprint());
        }
        PlanCommand::Apply(arguments) => plan_remote::apply(&arguments)?,
        PlanCommand::Diff(arguments) => plan_remote::diff(&arguments)?,
        PlanCommand::History(arguments) => plan_remote::history(&arguments)?,
        PlanCommand::Rollback(arguments) => plan_remote::rollback(&arguments)?,
        PlanCommand::List(arguments) => {
            let pair = arguments.selection.pair()?;
            let context = arguments.selection.limits().plan_context(&pair);
            for plan in shipped() {
                match named_plan(plan.name, &context) {
                    Ok(checked) => println!("{:<24} {}", plan.name, checked.mode),
                    Err(error) => println!("{:<24} cannot run here: {error}", plan.name),
                }
            }
        }
    }
    Ok(())
}
