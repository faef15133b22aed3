//! `conclave audit`: take a job's record along, check it, run it again.
use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand};
use conclave_proto::v1::{ExportJobRequest, export_job_response::Item};
use serde_json::json;
use tonic::{Request, Response, Status};

use crate::{
    args::Global,
    audit::{
        self, AuditFile,
        verify::{Anchor, Verified, verify, verify_complete, verify_file},
    },
    client::Client,
    commands::replay::{self, ReplayArgs},
    error::CliError,
    out, view,
};

/// What to do with a record.
#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    /// Fetch a job's record, check it, and write it to a file
    Export(ExportArgs),
    /// Check a file: any changed byte is found
    Verify(VerifyArgs),
    /// Run every agent of a file again and compare token for token
    Replay(ReplayArgs),
}

/// Flags of `audit export`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  conclave audit export 0190c3f2-…                     writes 0190c3f2-….audit
  conclave audit export 0190c3f2-… -o question.audit
  conclave audit export 0190c3f2-… --json | jq -c '{seq, kind}'")]
pub struct ExportArgs {
    /// The job's id
    pub job_id: String,
    /// Where to write; "-" is standard output [default: JOB.audit]
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Print the records as JSON, one a line, instead of writing a file
    #[arg(long, conflicts_with = "output")]
    pub json: bool,
}

/// Flags of `audit verify`.
#[derive(Debug, Args)]
#[command(after_help = "\
Checks the file's encoding, every link and payload of the chain, and the
cluster's signature over its end. A file without that signature is reported as
unanchored: it is consistent, but whoever held it could have made it.

Examples:
  conclave audit verify question.audit
  conclave audit verify question.audit --public-key $(conclave cluster status --json | jq -r '.nodes[0].public_key')

Of what was erased only the digest is left, so nobody can check it any more:
such a record fails unless --allow-erased says that this was expected.

Exit status: 0 the record holds, 1 it does not, 2 the file cannot be read.")]
pub struct VerifyArgs {
    /// The audit file
    pub file: PathBuf,
    /// The cluster's public key (`conclave cluster status --json`); refuses any other signer
    #[arg(long, value_name = "HEX")]
    pub public_key: Option<String>,
    /// Accept a record that parts were erased from
    #[arg(long)]
    pub allow_erased: bool,
    /// Print one JSON document
    #[arg(long)]
    pub json: bool,
}

/// Does it.
pub async fn run(global: &Global, command: AuditCommand) -> Result<(), CliError> {
    match command {
        AuditCommand::Export(args) => export(global, args).await,
        AuditCommand::Verify(args) => verify_command(&args),
        AuditCommand::Replay(args) => replay::run(args).await,
    }
}

async fn export(global: &Global, args: ExportArgs) -> Result<(), CliError> {
    let file = fetch(&global.client()?, &args.job_id).await?;
    let verified = verify_file(&file, None).map_err(|error| {
        CliError::Differs(format!("what the cluster sent does not hold: {error}"))
    })?;
    if args.json {
        return file
            .records
            .iter()
            .try_for_each(|record| out::json_line(&view::audit::record(record)));
    }
    let path = args
        .output
        .unwrap_or_else(|| PathBuf::from(format!("{}.audit", args.job_id)));
    let bytes = audit::encode(&file);
    if path.as_os_str() == "-" {
        return std::io::stdout()
            .lock()
            .write_all(&bytes)
            .map_err(CliError::Output);
    }
    fs::write(&path, bytes).map_err(|source| CliError::file(&path, source))?;
    out::note(describe(&verified));
    out::line(path.display().to_string())
}

/// A job's whole record, from whichever endpoint has it.
pub async fn fetch(client: &Client, job_id: &str) -> Result<AuditFile, CliError> {
    let message = ExportJobRequest {
        job_id: job_id.to_owned(),
    };
    client
        .unary(
            "ExportJob",
            message,
            async |link, request: Request<ExportJobRequest>| {
                let mut stream = link.audit().export_job(request).await?.into_inner();
                let mut file = AuditFile::default();
                while let Some(response) = stream.message().await? {
                    match response.item {
                        Some(Item::Record(record)) => file.records.push(record),
                        Some(Item::Head(head)) => file.head = Some(head),
                        None => {
                            return Err(Status::unimplemented(
                                "an audit item that this program does not know",
                            ));
                        }
                    }
                }
                Ok(Response::new(file))
            },
        )
        .await
}

/// The bytes of a record's file.
///
/// # Errors
/// A usage error: one that is not there says nothing of whether the record holds.
pub fn read(path: &Path) -> Result<Vec<u8>, CliError> {
    fs::read(path).map_err(|error| CliError::usage(format!("{}: {error}", path.display())))
}

fn verify_command(args: &VerifyArgs) -> Result<(), CliError> {
    let key = args.public_key.as_deref().map(parse_key).transpose()?;
    let bytes = read(&args.file)?;
    let found = verify(&bytes, key.as_deref()).and_then(|(file, verified)| {
        if !args.allow_erased {
            verify_complete(&file)?;
        }
        Ok(verified)
    });
    match found {
        Ok(verified) if args.json => out::document(&verified_json(&verified)),
        Ok(verified) => out::line(describe(&verified)),
        Err(error) => {
            if args.json {
                out::document(&json!({ "holds": false, "reason": error.to_string() }))?;
            }
            Err(CliError::Differs(format!(
                "{}: {error}",
                args.file.display()
            )))
        }
    }
}

fn parse_key(text: &str) -> Result<Vec<u8>, CliError> {
    hex::decode(text.trim())
        .ok()
        .filter(|key| key.len() == 32)
        .ok_or_else(|| {
            CliError::usage(
                "--public-key must be 64 hex digits: see `conclave cluster status --json`",
            )
        })
}

/// The finding, in one or two sentences.
pub fn describe(verified: &Verified) -> String {
    let erased = match verified.erased {
        0 => String::new(),
        count => format!(", {count} with erased parts"),
    };
    let anchor = match &verified.anchor {
        Anchor::None => {
            "*unanchored*: no signed head, so whoever held the file could have made it".to_owned()
        }
        Anchor::Signed {
            public_key,
            pinned,
            sealed,
        } => format!(
            "signed by {}{}{}",
            hex::encode(public_key),
            if *pinned {
                " (the key you named)"
            } else {
                " (not pinned: compare with `conclave cluster status --json`)"
            },
            if *sealed {
                "; sealed"
            } else {
                "; not sealed yet, records may still be added"
            },
        ),
    };
    format!(
        "The record of job {} holds: {} links{erased}; {anchor}.",
        verified.job_id, verified.records
    )
}

fn verified_json(verified: &Verified) -> serde_json::Value {
    let (public_key, pinned, sealed) = match &verified.anchor {
        Anchor::None => (None, false, false),
        Anchor::Signed {
            public_key,
            pinned,
            sealed,
        } => (Some(hex::encode(public_key)), *pinned, *sealed),
    };
    json!({
        "holds": true,
        "job_id": verified.job_id,
        "records": verified.records,
        "erased": verified.erased,
        "anchored": public_key.is_some(),
        "public_key": public_key,
        "pinned": pinned,
        "sealed": sealed,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unanchored_file_is_called_so() {
        let file = AuditFile {
            head: None,
            ..audit::verify::tests::signed()
        };
        let text = describe(&verify_file(&file, None).unwrap());
        assert!(text.contains("*unanchored*"), "{text}");
        let text = describe(&verify_file(&audit::verify::tests::signed(), None).unwrap());
        assert!(
            text.contains("signed by") && !text.contains("unanchored"),
            "{text}"
        );
    }

    #[test]
    fn a_file_that_is_not_there_is_no_record_that_does_not_hold() {
        let error = read(Path::new("/nowhere/x.audit")).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().starts_with("/nowhere/x.audit: "));
    }

    #[test]
    fn a_public_key_is_32_bytes_of_hex() {
        assert!(parse_key("abc").is_err());
        assert_eq!(parse_key(&"ab".repeat(32)).unwrap(), [0xab; 32]);
    }
}
