//! Board files: each is read, says where its numbers come from, and can be planned for.

#![expect(clippy::unwrap_used, reason = "a test")]

use outrider_plans::search::{Composition, Space};
use outrider_plans::{
    Board, BoardError, DraftTokens, ForecastError, Mode, ModelRole, UnitClass, UnitSpec,
    shipped_boards,
};

#[test]
fn every_shipped_board_has_times_for_every_placement_that_the_search_looks_at() {
    for shipped in shipped_boards() {
        let board = Board::parse(shipped.text).unwrap();
        let (context, model) = (board.context(), board.model());
        assert!(board.sources().len() > 8, "{}", shipped.name);
        let placements = Space::new(&context, &model).placements(&context);
        assert!(placements.len() > 8, "{}: {}", shipped.name, placements.len());
        for placement in placements {
            let Ok(plan) = placement.plan(&placement.name(), &context) else { continue };
            assert!(model.times(&plan, &context).is_ok(), "{}: {}", shipped.name, plan.name);
        }
    }
}

/// A software adapter runs on the cores: beside them it is no further unit, and what it takes from them nobody measured.
#[test]
fn a_software_adapter_is_never_put_beside_cores() {
    let shipped = shipped_boards().iter().find(|board| board.name == "imx95").unwrap();
    let of = |text: &str| {
        let board = Board::parse(text).unwrap();
        (board.context(), board.model())
    };
    let is_cores = |spec: &UnitSpec| matches!(spec, UnitSpec::Cpu { .. });
    let mixed = |placement: &Composition| {
        placement.units.iter().any(is_cores) && !placement.units.iter().all(is_cores)
    };
    let (context, model) = of(shipped.text);
    let placements = Space::new(&context, &model).placements(&context);
    let mode = Mode::Sequential { draft_tokens: DraftTokens::Fixed(3) };
    let beside = placements.iter().find(|placement| mixed(placement)).unwrap();
    let beside = Composition { mode, ..beside.clone() };
    let software = shipped.text.replace("kind = \"integrated\"", "kind = \"software\"");
    assert_ne!(software, shipped.text);
    let (context, model) = of(&software);
    let placements = Space::new(&context, &model).placements(&context);
    assert!(!placements.iter().any(mixed));
    // By itself it is a unit like any other.
    let alone = |placement: &&Composition| !placement.units.iter().any(is_cores);
    let alone = placements.iter().find(alone).unwrap().plan("alone", &context).unwrap();
    assert!(model.times(&alone, &context).is_ok());
    let beside = beside.plan("beside", &context).unwrap();
    let error = model.times(&beside, &context).unwrap_err();
    assert!(matches!(error, ForecastError::Shared { .. }), "{error}");
    assert!(error.to_string().contains("unit `gpu` is a software adapter"), "{error}");
}

/// The paper's cost ratios on one core come out of the table as they went in.
#[test]
fn the_papers_ratios_are_those_of_its_board() {
    let shipped = shipped_boards().iter().find(|board| board.name == "imx95").unwrap();
    let model = Board::parse(shipped.text).unwrap().model();
    let one = |class: &UnitClass, role| model.units[class].roles[&role].verify.at_ns(1, 0);
    let core = UnitClass::cores(0, 1);
    let gpu = UnitClass::Gpu { adapter: 0, name: "Mali-G310".to_owned() };
    let target = one(&core, ModelRole::Target);
    let permille = |ns: u64| (ns * 1000 + target / 2) / target;
    assert_eq!(permille(one(&core, ModelRole::Draft)), 800);
    assert_eq!(permille(one(&gpu, ModelRole::Draft)), 410);
}

#[test]
fn more_cores_are_never_slower_and_the_bus_ends_their_gain() {
    let shipped = shipped_boards().iter().find(|board| board.name == "raspberry-pi-5").unwrap();
    let model = Board::parse(shipped.text).unwrap().model();
    let pass = |cores| {
        let unit = &model.units[&UnitClass::cores(0, cores)];
        unit.roles[&ModelRole::Target].verify.at_ns(1, 0)
    };
    assert!(pass(2) < pass(1) && pass(3) <= pass(2));
    assert_eq!(pass(4), pass(3));
}

#[test]
fn a_target_too_large_for_the_board_is_refused() {
    let shipped = shipped_boards().iter().find(|board| board.name == "raspberry-pi-5").unwrap();
    let small = shipped
        .text
        .replace("memory_bytes = { value = 8589934592", "memory_bytes = { value = 1000000");
    assert_ne!(small, shipped.text);
    let board = Board::parse(&small).unwrap();
    let (context, model) = (board.context(), board.model());
    let fits = |placement: &Composition| placement.plan("any", &context).is_ok();
    assert!(!Space::new(&context, &model).placements(&context).iter().any(fits));
}

#[test]
fn a_number_without_a_source_is_refused() {
    let text = shipped_boards()[0].text;
    let bare = text.replace(
        "source = \"NXP i.MX 95 evaluation kit user guide: 8 GB; models with less exist\"",
        "source = \" \"",
    );
    assert_eq!(Board::parse(&bare).unwrap_err(), BoardError::Source);
    let none = text.replacen(", source = ", ", sauce = ", 1);
    assert!(matches!(Board::parse(&none).unwrap_err(), BoardError::Syntax(_)));
    let zero = text.replacen("value = 1024", "value = 0", 1);
    let words = Board::parse(&zero).unwrap_err().to_string();
    assert_eq!(words, "capacity of Cortex-A55 is 0, but must be at least 1");
}
