//! What the readers accept, and how they refuse the rest: each refusal names the file, the part and the expectation.

#![expect(clippy::unwrap_used, reason = "tests")]

use outrider_devices::graph::{Op, RopeStyle, StageOutput};
use serde_json::json;

use super::fixture::{self, Directory, Gguf};
use super::source::Source;
use super::{Checkpoint, CheckpointError, CheckpointKind, RopeScaling, Tied};
use crate::model::{Model, ModelSource};
use crate::pair::{PairError, check_pair};
use crate::tokenizer::SpecialTokens;

pub(super) fn open(bytes: &[u8]) -> Result<Checkpoint, CheckpointError> {
    Checkpoint::from_one_file(Source::made(bytes))
}

fn model(file: &Gguf) -> Result<Model, CheckpointError> {
    Model::new(&open(&file.bytes())?)
}

/// The message with which a changed file is refused.
fn refusal(change: impl FnOnce(&mut Gguf)) -> String {
    let mut file = Gguf::llama();
    change(&mut file);
    model(&file).unwrap_err().to_string()
}

/// Checks that a refusal names all that it should.
fn refused(change: impl FnOnce(&mut Gguf), parts: &[&str]) {
    let message = refusal(change);
    for part in parts {
        assert!(message.contains(part), "{message:?} does not say {part:?}");
    }
}

#[test]
fn a_gguf_file_becomes_a_model() {
    let model = model(&Gguf::llama()).unwrap();
    let shape = &model.config().shape;
    assert_eq!((shape.layers, shape.width, shape.ffn), (2, 32, 64));
    assert_eq!((shape.heads, shape.kv_heads, shape.rope.head_dim), (4, 2, 8));
    assert_eq!(shape.rope.style, RopeStyle::Adjacent);
    assert_eq!((model.config().tied, model.config().context), (Tied::Yes, 64));
    let embedding = &model.graph().weights[0];
    assert_eq!((embedding.rows, embedding.cols), (fixture::vocabulary().len(), 32));
    let ids = model.tokenizer().encode("the the", SpecialTokens::Plain).unwrap();
    assert_eq!(
        ids.iter().map(|&id| model.tokenizer().token_text(id)).collect::<Vec<_>>(),
        ["the", "Ġthe"]
    );
}

#[test]
fn a_model_is_cut_into_stages() {
    let model = model(&Gguf::llama()).unwrap();
    let whole = model.subgraph("target[0..2]", 0, 2).unwrap();
    assert!(whole.is_whole_model());
    let first = model.subgraph("target[0..1]", 0, 1).unwrap();
    let last = model.subgraph("target[1..2]", 1, 2).unwrap();
    assert!(matches!(first.output, StageOutput::Activations(_)));
    assert!(matches!(last.output, StageOutput::Logits(_)));
    assert!(last.graph.nodes.iter().any(|node| matches!(node.op, Op::FusedHead { .. })));
    let error = model.subgraph("target[1..3]", 1, 3).unwrap_err().to_string();
    assert!(error.contains("1..3") && error.contains("2 layers"), "{error}");
}

#[test]
fn a_safetensors_directory_becomes_the_same_model() {
    let directory = Directory::hugging_face();
    let checkpoint = Checkpoint::open(&directory.0).unwrap();
    assert_eq!(checkpoint.kind(), CheckpointKind::Safetensors);
    let found = Model::new(&checkpoint).unwrap();
    let expected = model(&Gguf::llama()).unwrap();
    assert_eq!(found.config().shape.rope.style, RopeStyle::Halves);
    assert_eq!(found.graph().nodes.len(), expected.graph().nodes.len());
    assert_eq!(found.config().special, expected.config().special);
    check_pair(&found, &expected).unwrap();
    assert!(found.template().is_none());
    let error = found.needed_template().unwrap_err().to_string();
    assert!(error.contains("has no chat template"), "{error}");
}

#[test]
fn shards_are_read_through_their_index() {
    let directory = Directory::hugging_face();
    let tensors = fixture::hugging_face_tensors();
    let (first, second) = tensors.split_at(7);
    let shards = [("a.safetensors", first), ("b.safetensors", second)];
    let mut map = serde_json::Map::new();
    for (name, tensors) in shards {
        directory.write(name, fixture::safetensors(tensors));
        map.extend(tensors.iter().map(|(tensor, _)| (tensor.clone(), json!(name))));
    }
    let index =
        directory.write("model.safetensors.index.json", json!({"weight_map": map}).to_string());
    Model::open(&ModelSource::File(directory.0.clone())).unwrap();

    map.insert("model.norm.weight".to_owned(), json!("b.safetensors"));
    directory.write("model.safetensors.index.json", json!({"weight_map": map}).to_string());
    let error = Checkpoint::open(&index).unwrap_err().to_string();
    assert!(error.contains("b.safetensors") && error.contains("model.norm.weight"), "{error}");

    map.insert("model.norm.weight".to_owned(), json!("../b.safetensors"));
    directory.write("model.safetensors.index.json", json!({"weight_map": map}).to_string());
    let error = Checkpoint::open(&index).unwrap_err().to_string();
    assert!(error.contains("beside the index"), "{error}");

    map.insert("model.norm.weight".to_owned(), json!("c.safetensors"));
    directory.write("model.safetensors.index.json", json!({"weight_map": map}).to_string());
    let error = Checkpoint::open(&index).unwrap_err();
    assert!(
        matches!(error, CheckpointError::MissingFile { ref file, .. } if file == "c.safetensors")
    );
}

#[test]
fn a_tensor_that_lies_askew_is_copied() {
    let directory = Directory::hugging_face();
    let mut bytes = fixture::safetensors(&fixture::hugging_face_tensors());
    let length = u64::from_le_bytes(*bytes.first_chunk().unwrap());
    for padding in 0..4 {
        directory.write("model.safetensors", &bytes);
        let model = Model::open(&ModelSource::File(directory.0.clone())).unwrap();
        for weight in &model.graph().weights {
            assert_eq!(weight.bytes().as_ptr().align_offset(4), 0, "{padding}: {}", weight.name);
            weight.to_f32().unwrap();
        }
        bytes.insert(8 + length as usize, b' ');
        let length = u64::from_le_bytes(*bytes.first_chunk().unwrap()) + 1;
        bytes[..8].copy_from_slice(&length.to_le_bytes());
    }
}

#[test]
fn what_is_not_a_model_is_named_with_its_first_bytes() {
    let directory = Directory::new();
    let path = directory.write("notes.txt", "Dear all,\nhello");
    let error = Checkpoint::open(&path).unwrap_err().to_string();
    assert!(error.contains("notes.txt") && error.contains("Dear all"), "{error}");
    assert!(error.contains("GGUF"), "{error}");
    for (name, bytes) in
        [("empty.gguf", &b""[..]), ("short.gguf", b"GG"), ("short.safetensors", b"\x01")]
    {
        let error = Checkpoint::open(&directory.write(name, bytes)).unwrap_err();
        assert!(error.to_string().contains(name), "{error}");
    }
    assert!(matches!(
        Checkpoint::open(&directory.0.join("none.gguf")).unwrap_err(),
        CheckpointError::Io { .. }
    ));
}

#[test]
fn a_directory_says_which_file_it_lacks() {
    let empty = Directory::new();
    let error = Checkpoint::open(&empty.0).unwrap_err().to_string();
    assert!(error.contains("model.safetensors") && error.contains("is missing"), "{error}");
    for file in ["config.json", "tokenizer.json"] {
        let directory = Directory::hugging_face();
        std::fs::remove_file(directory.0.join(file)).unwrap();
        let error = Model::open(&ModelSource::File(directory.0.clone())).unwrap_err();
        assert!(
            matches!(error, CheckpointError::MissingFile { file: ref found, .. } if found == file)
        );
    }
    let gguf = Directory::new();
    gguf.write("a.gguf", Gguf::llama().bytes());
    Checkpoint::open(&gguf.0).unwrap();
    gguf.write("b.gguf", Gguf::llama().bytes());
    let error = Checkpoint::open(&gguf.0).unwrap_err().to_string();
    assert!(error.contains("several GGUF files"), "{error}");
}

#[test]
fn tensors_are_checked_against_the_hyper_parameters() {
    refused(|f| f.remove("blk.1.attn_k.weight"), &["made", "blk.1.attn_k.weight is missing"]);
    refused(
        |f| f.of("blk.0.ffn_up.weight").1 = vec![64, 32],
        &["blk.0.ffn_up.weight", "[32, 64]", "64 x 32"],
    );
    refused(|f| f.of("blk.0.ffn_up.weight").1 = vec![32, 8, 8], &["[8, 8, 32]", "64 x 32"]);
    refused(
        |f| f.tensor("blk.0.attn_q.bias", &[32], 0),
        &["blk.0.attn_q.bias", "not a part of a llama model"],
    );
    refused(|f| f.of("blk.0.attn_q.weight").2 = 20, &["blk.0.attn_q.weight", "IQ4_NL", "Q8_0"]);
    refused(|f| f.of("blk.0.attn_q.weight").2 = 9, &["Q8_1"]);
    refused(|f| f.of("blk.0.attn_q.weight").2 = 77, &["format number 77"]);
    refused(|f| f.of("token_embd.weight").1[0] = 33, &["token_embd.weight", "blocks of 32"]);
    refused(|f| f.of("output_norm.weight").1 = vec![0], &["output_norm.weight", "above 0"]);
    refused(|f| f.of("output_norm.weight").1 = vec![1 << 40, 1 << 40], &["output_norm.weight"]);
    refused(|f| f.of("output_norm.weight").1 = vec![], &["0 dimensions"]);
    refused(|f| f.of("output_norm.weight").1 = vec![1; 5], &["5 dimensions"]);
    refused(
        |f| f.of("blk.1.ffn_down.weight").3.truncate(64),
        &["truncated", "blk.1.ffn_down.weight"],
    );
    refused(
        |f| f.of("output_norm.weight").0 = "token_embd.weight".to_owned(),
        &["token_embd.weight occurs twice"],
    );
}

#[test]
fn hyper_parameters_are_checked() {
    refused(|f| f.set_text("general.architecture", "qwen2"), &["\"qwen2\"", "\"llama\""]);
    refused(|f| f.remove("general.architecture"), &["general.architecture is missing"]);
    refused(|f| f.remove("llama.block_count"), &["llama.block_count is missing"]);
    for key in [
        "llama.block_count",
        "llama.embedding_length",
        "llama.attention.head_count",
        "llama.context_length",
        "llama.attention.head_count_kv",
        "llama.feed_forward_length",
    ] {
        refused(|f| f.set_u32(key, 0), &[key, "is 0"]);
        refused(|f| f.set_text(key, "many"), &[key, "\"many\"", "whole number"]);
        refused(
            |f| f.set(key, 10, u64::MAX.to_le_bytes().to_vec()),
            &[key, "18446744073709551615"],
        );
    }
    refused(|f| f.set_u32("llama.block_count", u32::MAX), &["blk.2.attn_norm.weight is missing"]);
    refused(
        |f| f.set_u32("llama.attention.head_count_kv", 3),
        &["head_count_kv is 3", "divisor of the 4"],
    );
    refused(
        |f| f.set_u32("llama.attention.head_count", 6),
        &["head_count is 6", "divisor of the width 32"],
    );
    refused(|f| f.set_u32("llama.attention.key_length", 7), &["key_length is 7", "even"]);
    refused(|f| f.set_u32("llama.attention.key_length", 1 << 30), &["key_length"]);
    refused(
        |f| f.set_u32("llama.rope.dimension_count", 4),
        &["rope.dimension_count is 4", "expected 8"],
    );
    refused(|f| f.set_u32("llama.expert_count", 8), &["expert_count is 8"]);
    refused(|f| f.set_text("llama.rope.scaling.type", "yarn"), &["yarn", "linear"]);
    refused(
        |f| f.set("llama.rope.freq_base", 6, f32::NAN.to_le_bytes().to_vec()),
        &["freq_base is NaN"],
    );
    refused(
        |f| f.set("llama.rope.freq_base", 12, 1e-300f64.to_le_bytes().to_vec()),
        &["finite angles"],
    );
    refused(|f| f.set_u32("tokenizer.ggml.bos_token_id", 9999), &["9999", "below the"]);
    refused(|f| f.set_u32("general.alignment", 0), &["general.alignment is 0"]);
    refused(|f| f.set_u32("general.alignment", 48), &["general.alignment is 48"]);
    refused(|f| f.set("general.alignment", 10, 32u64.to_le_bytes().to_vec()), &["of type 10"]);
}

#[test]
fn tokenizers_are_checked() {
    refused(|f| f.set_text("tokenizer.ggml.model", "t5"), &["\"t5\"", "gpt2", "llama"]);
    refused(|f| f.set_text("tokenizer.ggml.pre", "tekken"), &["\"tekken\"", "llama-bpe", "qwen2"]);
    refused(|f| f.remove("tokenizer.ggml.pre"), &["tokenizer.ggml.pre is missing"]);
    refused(|f| f.remove("tokenizer.ggml.tokens"), &["tokenizer.ggml.tokens is missing"]);
    refused(
        |f| f.set_texts("tokenizer.ggml.merges", ["t h", "th is"].into_iter()),
        &["merge 1", "th is"],
    );
    refused(|f| f.set_texts("tokenizer.ggml.merges", ["th"].into_iter()), &["merge 0", "\"th\""]);
    let long = "a".repeat(1000);
    let merge = format!("{long} {long}");
    refused(
        |f| f.set_texts("tokenizer.ggml.merges", [merge.as_str()].into_iter()),
        &["merge 0", "aaa..."],
    );
    refused(
        |f| f.set("tokenizer.ggml.token_type", 9, fixture::array(0, &[vec![1]])),
        &["token types has 1 entries"],
    );
    refused(|f| f.set_text("tokenizer.ggml.model", "llama"), &["tokenizer.ggml.scores is missing"]);
    refused(
        |f| {
            let more = fixture::vocabulary()
                .into_iter()
                .chain(["one more".to_owned()])
                .collect::<Vec<_>>();
            f.set_texts("tokenizer.ggml.tokens", more.iter().map(String::as_str));
            f.remove("tokenizer.ggml.token_type");
        },
        &["the number of tokens is 263", "262 rows"],
    );
    refused(
        |f| f.set_text("tokenizer.chat_template", "{% if"),
        &["made", "chat template cannot be read"],
    );
}

#[test]
fn json_is_checked() {
    let refused = |file: &str, text: String, parts: &[&str]| {
        let directory = Directory::hugging_face();
        directory.write(file, text);
        let message = Model::open(&ModelSource::File(directory.0.clone())).unwrap_err().to_string();
        for part in parts.iter().chain([&file]) {
            assert!(message.contains(part), "{message:?} does not say {part:?}");
        }
    };
    let with = |field: &str, value: serde_json::Value| {
        let mut config = fixture::config_json();
        config[field] = value;
        config.to_string()
    };
    refused("config.json", "{".to_owned(), &["malformed"]);
    refused("config.json", "[1]".to_owned(), &["malformed"]);
    refused("config.json", with("model_type", json!("gpt_neox")), &["gpt_neox", "llama"]);
    refused("config.json", with("hidden_size", json!(null)), &["hidden_size is missing"]);
    refused("config.json", with("hidden_size", json!(-1)), &["hidden_size is -1"]);
    refused("config.json", with("hidden_size", json!(1e300)), &["hidden_size is 1e+300"]);
    refused("config.json", with("attention_bias", json!(true)), &["attention_bias", "biases"]);
    refused("config.json", with("hidden_act", json!("gelu")), &["hidden_act", "gelu", "silu"]);
    refused(
        "config.json",
        with("rope_scaling", json!({"rope_type": "yarn"})),
        &["rope_scaling.rope_type", "llama3"],
    );
    refused(
        "config.json",
        with("rope_scaling", json!({"type": "linear", "factor": 0})),
        &["rope_scaling.factor is 0"],
    );
    refused(
        "config.json",
        with("rope_scaling", json!({"rope_type": "llama3"})),
        &["low_freq_factor is missing"],
    );
    refused("config.json", with("eos_token_id", json!("</s>")), &["eos_token_id", "token id"]);
    refused("tokenizer.json", "{}".to_owned(), &["cannot be read"]);
    let with = |pointer: &str, value: serde_json::Value| {
        let mut tokenizer = fixture::tokenizer_json();
        *tokenizer.pointer_mut(pointer).unwrap() = value;
        tokenizer.to_string()
    };
    refused("tokenizer.json", with("/model/type", json!("WordPiece")), &["WordPiece", "BPE"]);
    refused("tokenizer.json", with("/model/dropout", json!(0.1)), &["dropout"]);
    refused("tokenizer.json", with("/model/merges", json!([["a".repeat(300), "b"]])), &["merge 0"]);
    refused("tokenizer.json", with("/model/vocab/the", json!(4_000_000_000u32)), &["4000000000"]);
    refused("tokenizer.json", with("/decoder", json!({"type": "CTC"})), &["CTC", "ByteLevel"]);
    refused("tokenizer.json", with("/pre_tokenizer", json!({"no": "type"})), &["cannot be read"]);
}

#[test]
fn rope_scaling_is_read_from_either_format() {
    let mut file = Gguf::llama();
    file.set_text("llama.rope.scaling.type", "linear");
    file.set("llama.rope.scaling.factor", 6, 2f32.to_le_bytes().to_vec());
    let linear = open(&file.bytes()).unwrap();
    assert_eq!(linear.config().rope_scaling, RopeScaling::Linear { factor: 2.0 });
    assert_eq!(linear.config().shape.rope.inverse_frequencies[0], 0.5);

    let mut file = Gguf::llama();
    file.tensor("rope_freqs.weight", &[4], 0);
    file.of("rope_freqs.weight").3 =
        [1f32, 2.0, 4.0, 8.0].iter().flat_map(|f| f.to_le_bytes()).collect();
    let factors = open(&file.bytes()).unwrap();
    assert_eq!(factors.config().rope_scaling, RopeScaling::Factors);
    assert_eq!(factors.config().shape.rope.inverse_frequencies[..], [1.0, 0.05, 0.0025, 0.000125]);
    factors.graph().unwrap();
    file.of("rope_freqs.weight").3 = vec![0; 16];
    let error = open(&file.bytes()).unwrap_err().to_string();
    assert!(error.contains("rope_freqs.weight has a divisor"), "{error}");

    let directory = Directory::hugging_face();
    let mut config = fixture::config_json();
    config["rope_parameters"] = json!({"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8, "low_freq_factor": 1,
        "high_freq_factor": 4, "original_max_position_embeddings": 8192});
    directory.write("config.json", config.to_string());
    directory.write("generation_config.json", json!({"eos_token_id": [0, 2]}).to_string());
    let checkpoint = Checkpoint::open(&directory.0).unwrap();
    assert_eq!(checkpoint.config().rope_theta, 500000.0);
    assert!(matches!(checkpoint.config().rope_scaling, RopeScaling::Llama3 { .. }));
    assert_eq!(checkpoint.config().special.eos, [0, 2].into());
}

#[test]
fn a_template_is_found_where_it_may_be() {
    let directory = Directory::hugging_face();
    let source = || Checkpoint::open(&directory.0).unwrap().template_source();
    assert_eq!(source().unwrap(), None);
    directory.write("tokenizer_config.json", json!({"chat_template": "plain"}).to_string());
    assert_eq!(source().unwrap().as_deref(), Some("plain"));
    let list = json!([{"name": "tool_use", "template": "a"}, {"name": "default", "template": "b"}]);
    directory.write("tokenizer_config.json", json!({"chat_template": list}).to_string());
    assert_eq!(source().unwrap().as_deref(), Some("b"));
    directory.write("tokenizer_config.json", json!({"chat_template": 7}).to_string());
    assert!(source().unwrap_err().to_string().contains("chat_template is 7"));
    directory.write("chat_template.jinja", "file");
    assert_eq!(source().unwrap().as_deref(), Some("file"));
}

#[test]
fn a_pair_needs_one_vocabulary() {
    let target = model(&Gguf::llama()).unwrap();
    let mut other = Gguf::llama();
    let mut tokens = fixture::vocabulary();
    tokens[260] = "tho".to_owned();
    other.set_texts("tokenizer.ggml.tokens", tokens.iter().map(String::as_str));
    other.set_texts("tokenizer.ggml.merges", ["t h"].into_iter());
    let draft = model(&other).unwrap();
    let error = check_pair(&target, &draft).unwrap_err();
    assert!(
        matches!(error, PairError::Token { id: 260, target_tokens: 262, draft_tokens: 262, .. }),
        "{error}"
    );
    let message = error.to_string();
    assert!(message.contains("\"the\"") && message.contains("\"tho\""), "{message}");

    let mut other = Gguf::llama();
    other.set_u32("tokenizer.ggml.eos_token_id", 0);
    let message = check_pair(&target, &model(&other).unwrap()).unwrap_err().to_string();
    assert!(message.contains("end a text") && message.contains("{0}"), "{message}");
}

#[test]
fn a_summary_counts_what_is_there() {
    let summary = open(&Gguf::llama().bytes()).unwrap().summary().unwrap();
    let embedding = summary.formats.iter().find(|f| f.class == "embedding").unwrap();
    assert_eq!(
        (embedding.format.as_str(), embedding.parameters, embedding.bytes),
        ("Q8_0", 262 * 32, 262 * 34)
    );
    // Two norms of 32 a block and one at the end; projections of 32 x 32, twice 16 x 32, 32 x 32, three of 64 x 32.
    let block = 2 * 32 + 2 * 32 * 32 + 2 * 16 * 32 + 3 * 64 * 32;
    assert_eq!(summary.parameters, 262 * 32 + 32 + 2 * block);
    assert_eq!((summary.tokens, summary.chat_template), (262, true));
    let text = summary.to_string();
    assert!(text.contains("2 layers, width 32") && text.contains("byte-level BPE"), "{text}");
}
