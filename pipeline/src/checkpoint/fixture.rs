//! Small models written byte by byte for the tests of the readers, so that each field can be made wrong.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

/// Sizes of the model: 2 blocks of width 32, 4 heads of 8 with 2 for keys, feed-forward 64.
pub(crate) const LAYERS: usize = 2;
pub(crate) const WIDTH: u64 = 32;
const KV_WIDTH: u64 = 16;
const FFN: u64 = 64;
pub(crate) const CONTROL: [&str; 3] = ["<pad>", "<s>", "</s>"];

/// A GGUF file in the making. Entries are `(key, type, value)`, tensors `(name, dimensions, format, bytes)`.
#[derive(Clone)]
pub(crate) struct Gguf {
    pub(crate) entries: Vec<(String, u32, Vec<u8>)>,
    pub(crate) tensors: Vec<(String, Vec<u64>, u32, Vec<u8>)>,
}

/// A length-prefixed text.
pub(crate) fn text(text: &str) -> Vec<u8> {
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(text.as_bytes());
    bytes
}

/// The value of an array.
pub(crate) fn array(kind: u32, elements: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = kind.to_le_bytes().to_vec();
    bytes.extend_from_slice(&(elements.len() as u64).to_le_bytes());
    bytes.extend(elements.concat());
    bytes
}

/// The vocabulary: control tokens, the byte-level alphabet, and the merges `t h`, `th e`, `Ġ the`.
pub(crate) fn vocabulary() -> Vec<String> {
    let mut tokens: Vec<String> = CONTROL.map(str::to_owned).to_vec();
    let alphabet = (0x21..=0x7eu32).chain(0xa1..=0xac).chain(0xae..=0x143);
    tokens.extend(alphabet.filter_map(char::from_u32).map(String::from));
    tokens.extend(["th", "the", "Ġthe"].map(str::to_owned));
    tokens
}

impl Gguf {
    /// A llama whose weights are small numbers in `F32` and whose embedding is `Q8_0`.
    pub(crate) fn llama() -> Self {
        let mut file = Self { entries: Vec::new(), tensors: Vec::new() };
        let tokens = vocabulary();
        file.set_text("general.architecture", "llama");
        for (key, value) in [
            ("llama.block_count", LAYERS as u32),
            ("llama.context_length", 64),
            ("llama.embedding_length", WIDTH as u32),
            ("llama.feed_forward_length", FFN as u32),
            ("llama.attention.head_count", 4),
            ("llama.attention.head_count_kv", 2),
            ("tokenizer.ggml.bos_token_id", 1),
            ("tokenizer.ggml.eos_token_id", 2),
        ] {
            file.set_u32(key, value);
        }
        let epsilon = 1e-5f32.to_le_bytes().to_vec();
        file.set("llama.attention.layer_norm_rms_epsilon", 6, epsilon);
        file.set_text("tokenizer.ggml.model", "gpt2");
        file.set_text("tokenizer.ggml.pre", "gpt-2");
        let kinds: Vec<_> = (0..tokens.len())
            .map(|id| (if id < CONTROL.len() { 3i32 } else { 1 }).to_le_bytes().to_vec())
            .collect();
        file.set_texts("tokenizer.ggml.tokens", tokens.iter().map(String::as_str));
        file.set("tokenizer.ggml.token_type", 9, array(5, &kinds));
        file.set_texts("tokenizer.ggml.merges", ["t h", "th e", "Ġ the"].into_iter());
        file.set_text("tokenizer.chat_template", "{{ bos_token }}{{ messages[-1].content }}");
        file.tensor("token_embd.weight", &[WIDTH, tokens.len() as u64], 8);
        file.tensor("output_norm.weight", &[WIDTH], 0);
        for layer in 0..LAYERS {
            for (part, dimensions) in [
                ("attn_norm", &[WIDTH][..]),
                ("attn_q", &[WIDTH, WIDTH]),
                ("attn_k", &[WIDTH, KV_WIDTH]),
                ("attn_v", &[WIDTH, KV_WIDTH]),
                ("attn_output", &[WIDTH, WIDTH]),
                ("ffn_norm", &[WIDTH]),
                ("ffn_gate", &[WIDTH, FFN]),
                ("ffn_up", &[WIDTH, FFN]),
                ("ffn_down", &[FFN, WIDTH]),
            ] {
                file.tensor(&format!("blk.{layer}.{part}.weight"), dimensions, 0);
            }
        }
        file
    }

    /// Sets a metadata entry, in place if it is there.
    pub(crate) fn set(&mut self, key: &str, kind: u32, value: Vec<u8>) {
        match self.entries.iter_mut().find(|entry| entry.0 == key) {
            Some(entry) => (entry.1, entry.2) = (kind, value),
            None => self.entries.push((key.to_owned(), kind, value)),
        }
    }

    pub(crate) fn set_u32(&mut self, key: &str, value: u32) {
        self.set(key, 4, value.to_le_bytes().to_vec());
    }

    pub(crate) fn set_text(&mut self, key: &str, value: &str) {
        self.set(key, 8, text(value));
    }

    pub(crate) fn set_texts<'a>(&mut self, key: &str, values: impl Iterator<Item = &'a str>) {
        self.set(key, 9, array(8, &values.map(text).collect::<Vec<_>>()));
    }

    pub(crate) fn remove(&mut self, key: &str) {
        self.entries.retain(|entry| entry.0 != key);
        self.tensors.retain(|tensor| tensor.0 != key);
    }

    /// Adds a tensor of format 0 (`F32`) or 8 (`Q8_0`), dimensions in the file's order.
    pub(crate) fn tensor(&mut self, name: &str, dimensions: &[u64], format: u32) {
        let count: u64 = dimensions.iter().product();
        let bytes = match format {
            0 => (0..count).flat_map(|i| ((i % 17) as f32 / 17.0).to_le_bytes()).collect(),
            _ => {
                (0..count / 32).flat_map(|i| [0u8, 0x20].into_iter().chain([i as u8; 32])).collect()
            }
        };
        self.tensors.push((name.to_owned(), dimensions.to_vec(), format, bytes));
    }

    /// The tensor of that name.
    pub(crate) fn of(&mut self, name: &str) -> &mut (String, Vec<u64>, u32, Vec<u8>) {
        self.tensors.iter_mut().find(|tensor| tensor.0 == name).unwrap()
    }

    /// Everything before the data.
    pub(crate) fn header(&self) -> Vec<u8> {
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend_from_slice(&(self.tensors.len() as u64).to_le_bytes());
        bytes.extend_from_slice(&(self.entries.len() as u64).to_le_bytes());
        for (key, kind, value) in &self.entries {
            bytes.extend(text(key));
            bytes.extend_from_slice(&kind.to_le_bytes());
            bytes.extend_from_slice(value);
        }
        let mut offset = 0u64;
        for (name, dimensions, format, data) in &self.tensors {
            bytes.extend(text(name));
            bytes.extend_from_slice(&(dimensions.len() as u32).to_le_bytes());
            bytes.extend(dimensions.iter().flat_map(|d| d.to_le_bytes()));
            bytes.extend_from_slice(&format.to_le_bytes());
            bytes.extend_from_slice(&offset.to_le_bytes());
            offset += (data.len() as u64).next_multiple_of(32);
        }
        bytes
    }

    /// The whole file.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.header();
        for (_, _, _, data) in &self.tensors {
            bytes.resize(bytes.len().next_multiple_of(32), 0);
            bytes.extend_from_slice(data);
        }
        bytes
    }
}

/// A safetensors file of `F32` tensors.
pub(crate) fn safetensors(tensors: &[(String, Vec<usize>)]) -> Vec<u8> {
    let (mut header, mut at) = (serde_json::Map::new(), 0);
    for (name, shape) in tensors {
        let end = at + 4 * shape.iter().product::<usize>();
        let entry = serde_json::json!({"dtype": "F32", "shape": shape, "data_offsets": [at, end]});
        header.insert(name.clone(), entry);
        at = end;
    }
    with_header(&serde_json::Value::Object(header).to_string(), at)
}

/// A safetensors file with that header and `len` bytes of data.
pub(crate) fn with_header(header: &str, len: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend((0..len).map(|i| if i % 4 == 3 { 0x3e } else { i as u8 }));
    bytes
}

/// Names and shapes of the same model in a Hugging Face checkpoint.
pub(crate) fn hugging_face_tensors() -> Vec<(String, Vec<usize>)> {
    let (width, kv, ffn) = (WIDTH as usize, KV_WIDTH as usize, FFN as usize);
    let mut tensors = vec![
        ("model.embed_tokens.weight".to_owned(), vec![vocabulary().len(), width]),
        ("model.norm.weight".to_owned(), vec![width]),
    ];
    for layer in 0..LAYERS {
        for (part, shape) in [
            ("input_layernorm", vec![width]),
            ("self_attn.q_proj", vec![width, width]),
            ("self_attn.k_proj", vec![kv, width]),
            ("self_attn.v_proj", vec![kv, width]),
            ("self_attn.o_proj", vec![width, width]),
            ("post_attention_layernorm", vec![width]),
            ("mlp.gate_proj", vec![ffn, width]),
            ("mlp.up_proj", vec![ffn, width]),
            ("mlp.down_proj", vec![width, ffn]),
        ] {
            tensors.push((format!("model.layers.{layer}.{part}.weight"), shape));
        }
    }
    tensors
}

/// `config.json` of the same model.
pub(crate) fn config_json() -> serde_json::Value {
    serde_json::json!({
        "model_type": "llama", "num_hidden_layers": LAYERS, "hidden_size": WIDTH, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": FFN, "vocab_size": vocabulary().len(),
        "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": true,
        "bos_token_id": 1, "eos_token_id": [2],
    })
}

/// `tokenizer.json` of the same model.
pub(crate) fn tokenizer_json() -> serde_json::Value {
    let tokens = vocabulary();
    let vocab: serde_json::Map<_, _> =
        tokens.iter().enumerate().map(|(id, text)| (text.clone(), id.into())).collect();
    let added: Vec<_> = CONTROL
        .iter()
        .enumerate()
        .map(|(id, text)| {
            serde_json::json!({"id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true})
        })
        .collect();
    let bytes = serde_json::json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": bytes, "post_processor": null, "decoder": bytes,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab,
            "merges": [["t", "h"], ["th", "e"], ["Ġ", "the"]]},
    })
}

/// A directory of its own that is removed with the value.
pub(crate) struct Directory(pub(crate) PathBuf);

impl Directory {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("outrider-checkpoint-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    /// Writes a file, and returns its path.
    pub(crate) fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, bytes).unwrap();
        path
    }

    /// A whole Hugging Face checkpoint.
    pub(crate) fn hugging_face() -> Self {
        let directory = Self::new();
        directory.write("config.json", config_json().to_string());
        directory.write("tokenizer.json", tokenizer_json().to_string());
        directory.write("model.safetensors", safetensors(&hugging_face_tensors()));
        directory
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // A directory that stays behind in the system's temporary place harms nobody.
        let _ = fs::remove_dir_all(&self.0);
    }
}
