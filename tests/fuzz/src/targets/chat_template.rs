//! Chat templates: Jinja from a model's file, run on a job's messages.

use conclave_worker::model::{ChatMessage, ChatTemplate, TemplateError};

use crate::{Limits, Target};

/// The template's text.
pub const TARGET: Target = Target {
    name: "chat_template",
    run,
    seeds,
    words: &[
        "{% for m in messages %}",
        "{% endfor %}",
        "{% if ",
        "{% endif %}",
        "{{ ",
        " }}",
        "{%- set ",
        " %}",
        "namespace(",
        "range(99999)",
        " ~ ",
        " + ",
        " * ",
        " % ",
        "|tojson",
        "|join(",
        "[::-1]",
        ".split(",
        ".replace(",
        "|indent(",
        "|center(",
        "loop.index",
        "{% macro f(a) %}",
        "{% endmacro %}",
        "f(f)",
        "{% call ",
        "raise_exception(",
        "{% generation %}",
        "|batch(",
        "|format(",
        "|round(",
        ".ljust(",
        "|list",
        "**",
        "//",
    ],
    inputs: 2000,
    limits: Limits {
        memory: 256 << 20,
        memory_per_byte: 64 << 10,
        time: std::time::Duration::from_secs(4),
    },
};

fn run(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    let template = match ChatTemplate::new(Some(text), "<s>", "</s>") {
        Ok(template) => template,
        Err(error) => {
            assert!(matches!(error, TemplateError::Syntax(_)), "{error}");
            return;
        }
    };
    let messages = [
        ChatMessage::new("system", "Be brief."),
        ChatMessage::new("user", "Why?"),
    ];
    for add in [false, true] {
        match template.render(&messages, add) {
            Ok(prompt) => assert_eq!(
                template.render(&messages, add).as_ref().ok(),
                Some(&prompt),
                "a prompt depends on its messages alone"
            ),
            Err(error) => assert!(matches!(error, TemplateError::Render(_)), "{error}"),
        }
    }
}

fn seeds() -> Vec<Vec<u8>> {
    [
        "{% for m in messages %}{{ m.role }}: {{ m.content | trim }}<|im_end|>{% endfor %}",
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set s = messages[0]['content'] %}\
         {% set messages = messages[1:] %}{% endif %}{% for m in messages %}{% if (m['role'] == 'user') != \
         (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}",
        "{% set ns = namespace(x='') %}{% for m in messages %}{% set ns.x = ns.x + m.content %}{% endfor %}\
         {{ ns.x|tojson }}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        "{% macro f(a, b=1) %}{{ a.split('</think>')[-1].lstrip('\\n') }}{% endmacro %}{{ f(messages[1].content) }}",
        "{{ messages|map(attribute='content')|join(', ')|upper|replace('B', 'b') }}",
        "{% for a in range(9999) %}{% for b in range(9999) %}{{ a * b }}{% endfor %}{% endfor %}",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}
