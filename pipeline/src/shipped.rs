//! The translation pair that is a part of the binary.
//!
//! *Invariant:* the bytes lie on a boundary of 64, as GGUF offsets assume, so that weights are used where they are.

use outrider_plans::ModelRole;

use crate::checkpoint::{Checkpoint, CheckpointError};

#[cfg(feature = "embedded-models")]
mod bytes {
    use outrider_plans::ModelRole;

    #[repr(C, align(64))]
    struct Aligned<T: ?Sized>(T);

    // Read-only data of the program, not state: statics, since a constant would be copied wherever it is named.
    static TARGET: &Aligned<[u8]> = &Aligned(*include_bytes!("../models/en-de/target-q8_0.gguf"));
    static DRAFT: &Aligned<[u8]> = &Aligned(*include_bytes!("../models/en-de/draft-q4_0.gguf"));

    pub(super) fn of(role: ModelRole) -> Option<&'static [u8]> {
        match role {
            ModelRole::Target => Some(&TARGET.0),
            ModelRole::Draft => Some(&DRAFT.0),
        }
    }
}

#[cfg(not(feature = "embedded-models"))]
mod bytes {
    pub(super) fn of(_: outrider_plans::ModelRole) -> Option<&'static [u8]> {
        None
    }
}

/// Opens one of the shipped pair.
///
/// # Errors
/// [`CheckpointError::NotEmbedded`] in a binary without the pair.
pub fn open(role: ModelRole) -> Result<Checkpoint, CheckpointError> {
    let bytes = bytes::of(role).ok_or(CheckpointError::NotEmbedded { role })?;
    Checkpoint::embedded(&format!("shipped {role}"), bytes)
}

#[cfg(all(test, feature = "embedded-models"))]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::collections::BTreeMap;

    use outrider_plans::ModelRole;

    use crate::model::{Model, ModelSource};
    use crate::template::{Conversation, GenerationPrompt, Message};
    use crate::tokenizer::SpecialTokens;
    use crate::{check_pair, shipped};

    fn open(role: ModelRole) -> Model {
        Model::open(&ModelSource::Shipped(role)).unwrap()
    }

    #[test]
    fn the_shipped_models_are_a_pair() {
        let (target, draft) = (open(ModelRole::Target), open(ModelRole::Draft));
        check_pair(&target, &draft).unwrap();
        assert_eq!(target.name(), "shipped target");
        for (model, layers, width, ffn) in [(&target, 8, 512, 1536), (&draft, 3, 256, 704)] {
            let shape = &model.config().shape;
            assert_eq!((shape.layers, shape.width, shape.ffn), (layers, width, ffn));
            assert_eq!((shape.rope.head_dim, shape.vocabulary), (64, 8192));
            assert_eq!(model.config().context, 512);
            assert_eq!(model.tokenizer().eos_ids(), &[2].into());
            assert_eq!(model.graph().weights.len(), 3 + 9 * layers);
        }
    }

    #[test]
    fn weights_lie_aligned_in_the_binary() {
        for role in [ModelRole::Target, ModelRole::Draft] {
            let bytes = super::bytes::of(role).unwrap();
            assert_eq!(bytes.as_ptr().align_offset(64), 0);
            let own = bytes.as_ptr_range();
            for weight in &open(role).graph().weights {
                assert_eq!(weight.bytes().as_ptr().align_offset(32), 0, "{}", weight.name);
                assert!(own.contains(&weight.bytes().as_ptr()), "{} was copied", weight.name);
            }
        }
    }

    #[test]
    fn the_summary_says_what_is_shipped() {
        let summary = shipped::open(ModelRole::Draft).unwrap().summary().unwrap();
        // The embedding, three blocks (q and o, k and v, the feed-forward, two norms), the last norm.
        let block = 2 * 256 * 256 + 2 * 128 * 256 + 3 * 704 * 256 + 2 * 256;
        assert_eq!(summary.parameters, 8192 * 256 + 3 * block + 256);
        assert!(summary.formats.iter().all(|f| f.class == "norm" || f.format == "Q4_0"));
        assert!(summary.tied_embeddings && summary.chat_template);
    }

    fn prompt(model: &Model, turns: &[(&str, &str)]) -> String {
        let messages: Vec<_> = turns
            .iter()
            .map(|(role, content)| Message {
                role: (*role).to_owned(),
                content: (*content).to_owned(),
            })
            .collect();
        let conversation = Conversation {
            messages: &messages,
            generation_prompt: GenerationPrompt::Add,
            now: None,
            variables: &BTreeMap::new(),
        };
        model.needed_template().unwrap().render(&conversation).unwrap()
    }

    #[test]
    fn the_template_picks_the_direction() {
        let model = open(ModelRole::Target);
        let text = "Please restart the computer to finish the installation.";
        let rendered = prompt(&model, &[("user", text)]);
        assert_eq!(rendered, format!("<s>>>de<<{text}<sep>"));
        let ids = model.tokenizer().encode(&rendered, SpecialTokens::Parse).unwrap();
        assert_eq!(ids, [1, 3, 3378, 8159, 282, 2847, 316, 4295, 282, 5302, 19, 5]);
        assert_eq!(
            prompt(&model, &[("user", " >>en<< Guten Morgen! ")]),
            "<s>>>en<<Guten Morgen!<sep>"
        );
        assert_eq!(
            prompt(&model, &[("system", "Translate to English."), ("user", "Hallo")]),
            "<s>>>en<<Hallo<sep>"
        );
    }
}
