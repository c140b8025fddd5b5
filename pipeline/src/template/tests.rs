//! What templates of the families in use do.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;

use super::{ChatTemplate, Conversation, GenerationPrompt, Message, TemplateError, UnixSeconds};

fn turn(role: &str, content: &str) -> Message {
    Message { role: role.to_owned(), content: content.to_owned() }
}

fn render_at(
    source: &str,
    messages: &[Message],
    now: Option<UnixSeconds>,
) -> Result<String, TemplateError> {
    let variables = BTreeMap::from([("flavour".to_owned(), serde_json::json!("salt"))]);
    let generation_prompt = GenerationPrompt::Add;
    let conversation = Conversation { messages, generation_prompt, now, variables: &variables };
    ChatTemplate::new(source, "<s>", "</s>")?.render(&conversation)
}

fn render(source: &str, messages: &[Message]) -> Result<String, TemplateError> {
    render_at(source, messages, None)
}

#[test]
fn turns_are_wrapped_and_the_prompt_opened() {
    let source = "{%- for message in messages %}\n    {%- if message.role != 'tool' %}\n        \
        {{- '<|im_start|>' + message['role'] + '\\n' + message.content.strip() + '<|im_end|>\\n' }}\n    {%- endif %}\n\
        {%- endfor %}\n{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }}\n{%- endif %}\n";
    let messages = [turn("system", "Be kind."), turn("user", "  Hello ")];
    assert_eq!(
        render(source, &messages).unwrap(),
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    );
}

#[test]
fn a_template_refuses_in_its_own_words() {
    let source = "{% if messages[0].role != 'user' %}{{ raise_exception('user first, not ' + messages[0].role) }}{% endif %}ok";
    assert_eq!(render(source, &[turn("user", "a")]).unwrap(), "ok");
    assert_eq!(
        render(source, &[turn("system", "a")]).unwrap_err(),
        TemplateError::Refused { message: "user first, not system".to_owned() }
    );
}

#[test]
fn the_date_is_there_only_if_the_time_is_given() {
    let source = "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% else %}26 Jul 2024{% endif %}";
    let messages = [turn("user", "a")];
    assert_eq!(render(source, &messages).unwrap(), "26 Jul 2024");
    assert_eq!(
        render_at(source, &messages, Some(UnixSeconds(951_782_400))).unwrap(),
        "29 Feb 2000"
    );
}

#[test]
fn variables_of_a_request_do_not_replace_its_own() {
    let messages = [turn("user", "a")];
    assert_eq!(
        render("{{ flavour }} {{ bos_token }}{{ eos_token }}", &messages).unwrap(),
        "salt <s></s>"
    );
    let variables = BTreeMap::from([("bos_token".to_owned(), serde_json::json!("x"))]);
    let generation_prompt = GenerationPrompt::Omit;
    let conversation =
        Conversation { messages: &messages, generation_prompt, now: None, variables: &variables };
    let template =
        ChatTemplate::new("{{ bos_token }}{{ add_generation_prompt }}", "<s>", "").unwrap();
    assert_eq!(template.render(&conversation).unwrap(), "<s>False");
}

#[test]
fn json_is_written_as_python_writes_it() {
    let messages = [turn("user", "ä<b>")];
    assert_eq!(
        render("{{ messages[0] | tojson }}", &messages).unwrap(),
        r#"{"role": "user", "content": "ä<b>"}"#
    );
    assert_eq!(
        render("{{ [1, 2.5, none] | tojson(indent=2) }}", &messages).unwrap(),
        "[\n  1,\n  2.5,\n  null\n]"
    );
}

#[test]
fn a_hostile_template_ends() {
    let source =
        "{% for a in range(99999) %}{% for b in range(99999) %}{{ '' }}{% endfor %}{% endfor %}";
    assert!(matches!(render(source, &[]), Err(TemplateError::Failed { .. })));
    assert!(matches!(render("{% if", &[]), Err(TemplateError::Syntax { .. })));
    assert!(matches!(
        render("{{ messages[3].content | nothing }}", &[]),
        Err(TemplateError::Syntax { .. } | TemplateError::Failed { .. })
    ));
}
