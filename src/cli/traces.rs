//! Traces: how long publishing, mounting and what readers wait for take, sent to a collector by the protocol of OpenTelemetry (gRPC).
//!
//! Only in a program that is built with the feature `otel`. Spans carry what the log has too: references, ids of volumes, paths
//! within a model; nothing secret. What the collector does not take is lost, and nobody waits for it. Begun with the log.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

#[cfg(feature = "otel")]
pub(super) use self::sent::finish;
use crate::error::Result;

/// Logs what `filter` lets through to `writer`, and sends spans to `endpoint`, a URL, from now on.
///
/// # Errors
/// `Kernel` where no thread can be started for them, `Invalid` where `endpoint` is none; `Unsupported` where the program was built
/// without them.
#[cfg(feature = "otel")]
pub(super) fn begin<W>(endpoint: &str, filter: EnvFilter, coloured: bool, writer: W) -> Result<()>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    use tracing_subscriber::Layer;
    use tracing_subscriber::layer::SubscriberExt;
    use tracing_subscriber::util::SubscriberInitExt;

    let lines = tracing_subscriber::fmt::layer().with_target(false).log_internal_errors(false);
    let lines = lines.with_ansi(coloured).with_writer(writer).with_filter(filter);
    let _ = tracing_subscriber::registry().with(lines).with(sent::layer(endpoint)?).try_init();
    Ok(())
}

#[cfg(not(feature = "otel"))]
pub(super) fn begin<W>(_: &str, _: EnvFilter, _: bool, _: W) -> Result<()>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    use crate::error::{Error, Kind};
    let error = Error::new(Kind::Unsupported, "serve.traces: this program was built without traces");
    Err(error.hint("build it with cargo's feature 'otel', or leave serve.traces and WEIGHTFS_TRACES out"))
}

/// Sends what is left.
#[cfg(not(feature = "otel"))]
pub(super) fn finish() {}

#[cfg(feature = "otel")]
mod sent {
    use std::sync::OnceLock;
    use std::time::Duration;

    use opentelemetry::trace::TracerProvider;
    use opentelemetry_otlp::{SpanExporter, WithExportConfig};
    use opentelemetry_sdk::Resource;
    use opentelemetry_sdk::trace::SdkTracerProvider;
    use tokio::runtime::Runtime;
    use tracing::level_filters::LevelFilter;
    use tracing_subscriber::Layer;
    use tracing_subscriber::filter::Targets;
    use tracing_subscriber::registry::LookupSpan;

    use crate::error::{Error, Kind, Result};
    use crate::metrics::TRACED;

    /// How long the collector may take for what is left at the end.
    const LAST: Duration = Duration::from_secs(1);

    /// Who sends, and the thread that talks to the collector; both until the process ends.
    static SENDER: OnceLock<(SdkTracerProvider, Runtime)> = OnceLock::new();

    /// What makes spans of the ones that are marked as traced.
    pub(super) fn layer<S>(endpoint: &str) -> Result<impl Layer<S> + use<S>>
    where
        S: tracing::Subscriber + for<'a> LookupSpan<'a>,
    {
        let provider = start(endpoint)?;
        let spans = tracing_opentelemetry::layer().with_tracer(provider.tracer("weightfs"));
        let spans = spans.with_location(false).with_threads(false);
        Ok(spans.with_filter(Targets::new().with_target(TRACED, LevelFilter::INFO)))
    }

    fn start(endpoint: &str) -> Result<SdkTracerProvider> {
        let threads = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let threads = threads
            .map_err(|error| Error::from_source(Kind::Kernel, "cannot start a thread for traces", error))?;
        // The connection belongs to this runtime, whoever has spans sent.
        let entered = threads.enter();
        let exporter = SpanExporter::builder().with_tonic().with_endpoint(endpoint).build();
        let exporter = exporter.map_err(|error| {
            Error::new(
                Kind::Invalid,
                format!("serve.traces: {endpoint:?} is no collector's address: {error}"),
            )
        })?;
        let of_us = Resource::builder().with_service_name("weightfs").build();
        let provider =
            SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(of_us).build();
        drop(entered);
        let (provider, _) = SENDER.get_or_init(|| (provider, threads));
        Ok(provider.clone())
    }

    /// Sends what is left, if the collector takes it at once.
    pub(in crate::cli) fn finish() {
        if let Some((provider, _)) = SENDER.get()
            && let Err(error) = provider.shutdown_with_timeout(LAST)
        {
            tracing::debug!(%error, "the last traces are lost");
        }
    }
}

#[cfg(test)]
mod tests {
    #[cfg(not(feature = "otel"))]
    #[test]
    fn a_program_that_was_built_without_traces_says_so_and_what_to_do() {
        let error = super::begin("http://127.0.0.1:1", super::EnvFilter::new("off"), false, std::io::sink)
            .unwrap_err();
        assert_eq!(error.kind(), crate::Kind::Unsupported);
        assert!(error.to_string().contains("feature 'otel'"), "{error}");
    }
}
