//! Sums over the lanes of a subgroup by halves: what the lanes have of many values goes to the lanes that finish them.
//!
//! Lanes that are half a subgroup apart exchange halves of their values and add, then lanes a quarter apart, and so on;
//! once a lane has one value left, both partners add it. *Invariant:* each value is summed over the lanes in the same
//! tree, whatever the number of values; so a row's bits do not depend on the rows beside it.

use super::Writer;

/// Values whose sums lie spread over the lanes.
#[derive(Clone, Debug)]
pub(super) struct Spread {
    /// The variables that hold them, each for up to `per_variable` values.
    variables: Vec<String>,
    per_variable: usize,
    /// Lanes between the owners of two values.
    step: u32,
    values: usize,
}

/// Emits the sums over `size` lanes of `values`, which are expressions without effect and whose number is a power of two;
/// `name` begins the names of what is declared.
pub(super) fn sum(w: &mut Writer, size: u32, name: &str, values: &[String]) -> Spread {
    assert!(values.len().is_power_of_two(), "{} values to halve", values.len());
    let per_variable = values.len().min(size as usize);
    let variables: Vec<_> = values
        .chunks(per_variable)
        .enumerate()
        .map(|(set, values)| sum_set(w, size, &format!("{name}_{set}"), values))
        .collect();
    Spread { variables, per_variable, step: size / per_variable as u32, values: values.len() }
}

fn sum_set(w: &mut Writer, size: u32, name: &str, values: &[String]) -> String {
    let mut values = values.to_vec();
    let mut apart = size / 2;
    while apart > 0 {
        let half = values.len() / 2;
        if half == 0 {
            let sum = format!("{name}_all_{apart}");
            let own = &values[0];
            w.line(format!("let {sum} = {own} + subgroupShuffleXor({own}, {apart}u);"));
            values[0] = sum;
        } else {
            let upper = format!("(sub_lane & {apart}u) != 0u");
            for i in 0..half {
                let (low, high) = (&values[i], &values[i + half]);
                let sum = format!("{name}_{i}_{apart}");
                w.line(format!(
                    "let {sum} = select({low}, {high}, {upper}) \
                     + subgroupShuffleXor(select({high}, {low}, {upper}), {apart}u);"
                ));
                values[i] = sum;
            }
            values.truncate(half);
        }
        apart /= 2;
    }
    values.swap_remove(0)
}

impl Spread {
    /// Emits `let {name}`, the value whose number is the expression `index`; all lanes must pass here.
    pub(super) fn fetch(&self, w: &mut Writer, name: &str, index: &str) {
        let Self { per_variable, step, .. } = *self;
        w.line(format!("var {name} = 0.0;"));
        w.line(format!("{{ let index = {index};"));
        for (set, variable) in self.variables.iter().enumerate() {
            let shuffled =
                format!("subgroupShuffle({variable}, index % {per_variable}u * {step}u)");
            if self.variables.len() == 1 {
                w.line(format!("{name} = {shuffled};"));
            } else {
                w.line(format!(
                    "{{ let there = {shuffled}; \
                     {name} = select({name}, there, index / {per_variable}u == {set}u); }}"
                ));
            }
        }
        w.line("}");
    }

    /// Emits the stores of all values to `array`, beginning at the expression `start`.
    pub(super) fn store(&self, w: &mut Writer, array: &str, start: &str) {
        let Self { per_variable, step, .. } = *self;
        w.line(format!("if (sub_lane % {step}u == 0u) {{"));
        for (set, variable) in self.variables.iter().enumerate() {
            let first = set * per_variable;
            w.line(format!("{array}[{start} + {first}u + sub_lane / {step}u] = {variable};"));
        }
        w.line("}");
    }

    pub(super) fn values(&self) -> usize {
        self.values
    }
}
