// What a training file holds: errors first, then how long its rows are, then what else there is to say of it.
import { useState } from "preact/hooks";
import { lines, open, url } from "../../api/client";
import type { DataReport } from "../../api/client";
import { Badge, Card, ErrorNote, useLoad } from "../../ui";
import { compact, number, percent, plural } from "../../ui/format";

export interface Looked {
  file: string;
  model: string;
  validation_file: string | null | undefined;
  max_length: number | undefined;
}

/** A wait after which what was typed has settled; what was changed meanwhile is not asked for any more. */
export const settled = (): Promise<void> => new Promise((resolve) => setTimeout(resolve, 300));

/** The newest report of a file; asked for again when what it depends on changes. */
export function useReport({ file, ...about }: Looked) {
  const [found, setFound] = useState<{ file: string; report: DataReport } | null>(null);
  const stream = async (signal: AbortSignal) => {
    if (!file) return;
    await settled();
    for await (const line of lines(await open(url("/api/files/{file_id}/report", { file_id: file, ...about }), { signal }))) {
      if (!signal.aborted) setFound({ file, report: JSON.parse(line) });
    }
  };
  return { ...useLoad(stream, [file, ...Object.values(about)]), data: found?.file === file ? found.report : null };
}

type Tokens = NonNullable<DataReport["tokens"]>;

function stage(report: DataReport | null): string {
  if (!report) return "Reading the file";
  if (report.num_errors && report.done) return plural(report.num_errors, "error");
  if (!report.tokens) return report.done ? "Read" : "No errors so far; counting tokens";
  const { of_rows, rows } = report.tokens;
  return of_rows < rows ? `Token figures of ${number(of_rows)} of ${number(rows)} rows` : `Exact: all ${number(rows)} rows`;
}

export function Report({ report, error, retry }: { report: DataReport | null; error: Error | null; retry: () => void }) {
  const tokens = report?.tokens;
  const figures: [string, string][] = [
    ["Rows", number(report?.rows)],
    ["Format", report?.format ?? "–"],
    ["Errors", number(report?.num_errors)],
    ["Tokens", compact(tokens?.total)],
    ["Target tokens", tokens ? `${compact(tokens.target)} · ${percent(tokens.target / tokens.total, 0)}` : "–"],
    ["Mean length", number(tokens?.mean)],
    ["Median", number(tokens?.median)],
    ["95 % up to", number(tokens?.p95)],
    ["Longest", number(tokens?.max)],
    ["Truncated", number(tokens?.truncated)],
    ["Dropped", number(tokens?.dropped)],
    ["Validation rows", number(report?.validation_rows)],
  ];
  return (
    <Card title="Data report" actions={<span class="muted small" role="status">{error ? "" : stage(report)}</span>}>
      {error && <ErrorNote error={error} retry={retry} />}
      <div class="halves">
        <div class="stack">
          <dl class="figures">
            {figures.map(([name, value]) => <div key={name}><dt>{name}</dt><dd>{value}</dd></div>)}
          </dl>
          <Histogram tokens={tokens} />
        </div>
        <div class="remarks" role="region" aria-label="Errors and findings" tabIndex={0}>{report && <Remarks report={report} />}</div>
      </div>
    </Card>
  );
}

function Remarks({ report: { errors, num_errors, findings, done } }: { report: DataReport }) {
  return (
    <>
      {errors.map(({ line, message }) => <p key={line}><Badge of="critical">{line ? `Line ${line}` : "File"}</Badge> {message}</p>)}
      {num_errors > errors.length && <p class="muted">and {plural(num_errors - errors.length, "more error")}</p>}
      {findings?.map((finding) => <p key={finding.message}><Badge of={finding.severity} /> {finding.message} <span class="muted">{finding.advice}</span></p>)}
      {!findings && !done && <p class="muted">Looking for duplicates, leakage, contradictions and the like.</p>}
      {findings?.length === 0 && !num_errors && <p class="muted">No errors, duplicates, leakage or contradictions.</p>}
    </>
  );
}

/** Bars of equal width, one for each count; those of rows that are cut, and the mark where, in amber. */
function Histogram({ tokens }: { tokens: Tokens | null | undefined }) {
  if (!tokens) return <figure class="histogram" />;
  const { edges, counts, max_length } = tokens;
  const [most, first, last] = [Math.max(...counts, 1), edges[0] ?? 0, edges.at(-1) ?? 0];
  const cut = edges.findLastIndex((edge) => edge <= max_length);
  const [from = 0, to = from + 1] = edges.slice(cut, cut + 2);
  const mark = max_length < last ? cut + (max_length - from) / (to - from) : null;
  const said = `Lengths of rows in tokens: half have up to ${number(tokens.median)}, 95 % up to ${number(tokens.p95)}, the longest ${number(tokens.max)}.`;
  return (
    <figure class="histogram">
      <svg viewBox={`0 0 ${counts.length || 1} 100`} preserveAspectRatio="none" role="img" aria-label={said}>
        {counts.map((count, index) => (
          <rect key={index} x={index + 0.06} width={0.88} y={100 - (96 * count) / most} height={(96 * count) / most} class={(edges[index] ?? 0) >= max_length ? "cut" : ""}>
            <title>{number(edges[index])} to {number(edges[index + 1])} tokens: {plural(count, "row")}</title>
          </rect>
        ))}
        {mark !== null && <line x1={mark} x2={mark} y1="0" y2="100" />}
      </svg>
      <figcaption>
        <span>{number(first)}</span>
        <span>{mark === null ? `no row is longer than max_length ${number(max_length)}` : `cut at max_length ${number(max_length)}`}</span>
        <span>{number(last)} tokens</span>
      </figcaption>
    </figure>
  );
}
