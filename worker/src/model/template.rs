//! The chat template of a model: Jinja as Hugging Face writes it.
//!
//! A rendering is bounded in instructions, in recursion and in its output. The memory of the values in between
//! is not: `{% set x = x ~ x %}` doubles a text with one instruction, and minijinja has no hook where it
//! concatenates. A model's file is what an operator chose to run; one from strangers belongs under a memory
//! limit of the system (docs/OPERATIONS.md, "Settings of a worker").

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, Value, context};
use serde::{Deserialize, Serialize};

use super::error::TemplateError;

/// Instructions that one rendering may take: far above any real template, far below a hang.
const FUEL: u64 = 2_000_000;

/// Longest template and longest rendering, in bytes.
const MAX_TEMPLATE: usize = 1 << 20;
const MAX_PROMPT: usize = 64 << 20;

const NAME: &str = "chat";

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChatMessage {
    /// `system`, `user`, `assistant` or what else the template knows.
    pub role: String,
    /// Its text.
    pub content: String,
}

impl ChatMessage {
    /// A message.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> ChatMessage {
        ChatMessage {
            role: role.into(),
            content: content.into(),
        }
    }
}

/// Turns messages into the text that the model was trained on.
#[derive(Debug)]
pub struct ChatTemplate {
    env: Environment<'static>,
    present: bool,
    bos: String,
    eos: String,
}

impl ChatTemplate {
    /// Compiles `source`; `None` makes a template that refuses to render. `bos` and `eos` are the texts
    /// of the special tokens, empty if there are none.
    ///
    /// # Errors
    /// [`TemplateError::Syntax`].
    pub fn new(source: Option<&str>, bos: &str, eos: &str) -> Result<ChatTemplate, TemplateError> {
        let mut env = Environment::new();
        // As transformers sets jinja2 up: blocks leave no blank lines behind.
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build();
        env.set_syntax(syntax.map_err(|error| TemplateError::Syntax(error.to_string()))?);
        env.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        env.set_fuel(Some(FUEL));
        env.set_recursion_limit(64);
        env.add_function("raise_exception", raise_exception);
        // `strftime_now` stays undefined: a prompt must not depend on the clock, or an audit could not be
        // replayed. Templates that know it fall back to a fixed date.
        if let Some(source) = source {
            if source.len() > MAX_TEMPLATE {
                let problem = format!("it is longer than {MAX_TEMPLATE} bytes");
                return Err(TemplateError::Syntax(problem));
            }
            env.add_template_owned(NAME, source.to_owned())
                .map_err(|error| TemplateError::Syntax(error.to_string()))?;
        }
        Ok(ChatTemplate {
            env,
            present: source.is_some(),
            bos: bos.into(),
            eos: eos.into(),
        })
    }

    /// Whether the model has a template.
    pub fn is_present(&self) -> bool {
        self.present
    }

    /// The prompt for `messages`; with `add_generation_prompt` it ends where the assistant's turn begins.
    ///
    /// # Errors
    /// [`TemplateError::Absent`], or [`TemplateError::Render`] with what the template said.
    pub fn render(
        &self,
        messages: &[ChatMessage],
        add_generation_prompt: bool,
    ) -> Result<String, TemplateError> {
        if !self.present {
            return Err(TemplateError::Absent);
        }
        let render = |error: Error| TemplateError::Render(error.to_string());
        let template = self.env.get_template(NAME).map_err(render)?;
        let turns: Vec<Value> = messages
            .iter()
            .map(|message| context! { role => &*message.role, content => &*message.content })
            .collect();
        let context = context! {
            messages => turns,
            add_generation_prompt => add_generation_prompt,
            bos_token => &*self.bos,
            eos_token => &*self.eos,
        };
        let mut out = Bounded { bytes: Vec::new() };
        template
            .render_captured_to(context, &mut out)
            .map_err(render)?;
        String::from_utf8(out.bytes).map_err(|error| TemplateError::Render(error.to_string()))
    }
}

/// Refuses to grow beyond the longest prompt, so that a template cannot fill the memory.
struct Bounded {
    bytes: Vec<u8>,
}

impl std::io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.bytes.len() + bytes.len() > MAX_PROMPT {
            return Err(std::io::Error::other(format!(
                "longer than {MAX_PROMPT} bytes"
            )));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str, messages: &[ChatMessage]) -> Result<String, TemplateError> {
        ChatTemplate::new(Some(source), "<s>", "</s>")?.render(messages, true)
    }

    fn hello() -> [ChatMessage; 1] {
        [ChatMessage::new("user", " Hello ")]
    }

    #[test]
    fn blocks_and_methods_behave_as_in_transformers() {
        let source = "{{ bos_token }}\n{%- for message in messages %}\n    {%- if loop.first %}\n\
            [{{ message['role'].upper() }}] {{ message.content.strip() }}{{ eos_token }}\n\
            {% endif %}\n{% endfor %}\n{% if add_generation_prompt %}\n>{% endif %}\n";
        assert_eq!(render(source, &hello()).unwrap(), "<s>[USER] Hello</s>\n>");
    }

    #[test]
    fn a_template_may_refuse_its_messages() {
        let source = "{{ raise_exception('roles must alternate') }}";
        let refused = render(source, &hello()).unwrap_err().to_string();
        assert!(refused.contains("roles must alternate"), "{refused}");
    }

    #[test]
    fn a_date_is_never_read_from_the_clock() {
        let source =
            "{% if strftime_now is defined %}{{ strftime_now('%d') }}{% else %}fixed{% endif %}";
        assert_eq!(render(source, &hello()).unwrap(), "fixed");
    }

    #[test]
    fn a_template_that_does_not_end_is_stopped() {
        let endless = "{% for a in range(9999) %}{% for b in range(9999) %}{{ a * b }}{% endfor %}{% endfor %}";
        assert!(matches!(
            render(endless, &hello()),
            Err(TemplateError::Render(_))
        ));
    }

    #[test]
    fn a_damaged_template_and_none_at_all_are_told_apart() {
        assert!(matches!(
            render("{% for %}", &hello()),
            Err(TemplateError::Syntax(_))
        ));
        let none = ChatTemplate::new(None, "", "").unwrap();
        assert!(!none.is_present());
        assert!(matches!(
            none.render(&hello(), true),
            Err(TemplateError::Absent)
        ));
    }
}
