//! What a person reads at the end of a run.

use std::fmt::Write;

use crate::report::{Report, Section};

/// The whole run as text.
pub fn text(report: &Report) -> String {
    let mut text = String::new();
    for section in &report.sections {
        describe(&mut text, section);
    }
    let prepared = &report.prepared;
    let reused = |yes| if yes { ", used again" } else { "" };
    line(
        &mut text,
        format_args!(
            "\nprepared   {} {} CSRs{}, {} tokens{}, {} identities; {} calls in all",
            prepared.csrs,
            prepared.key,
            reused(prepared.csrs_reused),
            prepared.tokens,
            reused(prepared.tokens_reused),
            prepared.identities,
            prepared.calls
        ),
    );
    if let Some(idle) = &report.idle {
        line(
            &mut text,
            format_args!(
                "idle       {} connections, {} of them open at the end",
                idle.connections, idle.open_at_end
            ),
        );
    }
    if report.interrupted {
        line(&mut text, format_args!("The run was ended early."));
    }
    text
}

fn describe(text: &mut String, section: &Section) {
    let connections = section.connections.map_or_else(
        || "a fresh connection each".into(),
        |count| format!("{count} connections"),
    );
    line(
        text,
        format_args!(
            "\n{}, {connections}, {:.1} s",
            section.step, section.seconds
        ),
    );
    if let Some(rate) = section.offered_rate {
        line(text, format_args!("  offered    {rate:.0}/s"));
    }
    line(
        text,
        format_args!(
            "  issued     {} certificates, {:.0}/s",
            section.issued, section.rate
        ),
    );
    let latency = &section.latency;
    line(
        text,
        format_args!(
            "  latency    p50 {:.2} ms, p90 {:.2}, p99 {:.2}, p99.9 {:.2}, longest {:.2}",
            latency.p50, latency.p90, latency.p99, latency.p999, latency.max
        ),
    );
    for (name, errors) in &section.errors {
        line(
            text,
            format_args!(
                "  errors     {} × {name}, such as: {}",
                errors.count, errors.example
            ),
        );
    }
    if section.refusal_latency.count > 0 {
        line(
            text,
            format_args!(
                "  refusals   p50 {:.2} ms, p99 {:.2}",
                section.refusal_latency.p50, section.refusal_latency.p99
            ),
        );
    }
    for (name, cpu) in &section.cpu {
        let each = cpu
            .micros_per_issuance
            .map_or_else(|| "–".into(), |micros| format!("{micros:.0} µs"));
        let memory = section.memory.get(name);
        let memory = memory.map_or_else(String::new, |memory| {
            format!(
                "; {:.1} MB → {:.1} MB, peak {:.1} MB",
                megabytes(memory.begin_kb),
                megabytes(memory.end_kb),
                megabytes(memory.peak_kb)
            )
        });
        line(
            text,
            format_args!(
                "  {name:<10} {each} of CPU an issuance ({:.2} s user, {:.2} s system){memory}",
                cpu.user_seconds, cpu.system_seconds
            ),
        );
    }
    match &section.verified {
        verified if verified.wrong > 0 => {
            let example = verified.example.as_deref().unwrap_or_default();
            line(
                text,
                format_args!(
                    "  WRONG      {} of {} chains, such as: {example}",
                    verified.wrong, verified.count
                ),
            );
        }
        verified if verified.count > 0 => {
            line(text, format_args!("  verified   {} chains", verified.count))
        }
        _ => {}
    }
}

fn megabytes(kb: u64) -> f64 {
    kb as f64 / 1024.0
}

fn line(text: &mut String, what: std::fmt::Arguments<'_>) {
    writeln!(text, "{what}").expect("a String takes everything");
}
