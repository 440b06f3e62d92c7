// What a training file holds: errors first, then how long its rows are, then what else there is to say of it.
import { useState } from "preact/hooks";
import { lines, open, url } from "../../api/client";
import type { DataReport } from "../../api/client";
import { Badge, Card, ErrorNote, useLoad } from "../../ui";
import type { Loaded } from "../../ui";
import { compact, number, percent, plural } from "../../ui/format";

/** What is looked at, and how. */
export type Subject = { file: string; model: string; validation_file: string | null | undefined; max_length: number | undefined };

/** A wait after which what was typed has settled; what was changed meanwhile is not asked for any more. */
export const settled = (): Promise<void> => new Promise((resolve) => setTimeout(resolve, 300));

/** The newest report of a file; asked for again when what it depends on changes. */
export function useReport({ file, ...how }: Subject): Loaded<DataReport> {
  const [found, setFound] = useState<{ file: string; report: DataReport } | null>(null);
  const stream = async (signal: AbortSignal) => {
    if (!file) return;
    await settled();
    for await (const line of lines(await open(url("/api/files/{file_id}/report", { file_id: file, ...how }), { signal }))) {
      if (!signal.aborted) setFound({ file, report: JSON.parse(line) });
    }
  };
  return { ...useLoad(stream, [file, ...Object.values(how)]), data: found?.file === file ? found.report : null };
}

function stage({ tokens, num_errors, done }: DataReport): string {
  if (!tokens) return num_errors ? plural(num_errors, "error") : done ? "Done" : "No errors so far; counting tokens";
  return tokens.of_rows < tokens.rows ? `Token figures of ${number(tokens.of_rows)} of ${number(tokens.rows)} rows` : `Exact: all ${number(tokens.rows)} rows`;
}

export function Report({ data: report, error, busy, reload }: Loaded<DataReport>) {
  const tokens = report?.tokens;
  const figures = {
    Rows: number(report?.rows), Format: report?.format ?? "–", Errors: number(report?.num_errors), Tokens: compact(tokens?.total),
    "Target tokens": tokens ? `${compact(tokens.target)}${tokens.total ? ` · ${percent(tokens.target / tokens.total, 0)}` : ""}` : "–", "Mean length": number(tokens && Math.round(tokens.mean)),
    Median: number(tokens?.median), "95 % up to": number(tokens?.p95), Longest: number(tokens?.max),
    Truncated: number(tokens?.truncated), Dropped: number(tokens?.dropped), "Validation rows": number(report?.validation_rows),
  };
  return (
    <Card title="Data report">
      <p class="muted small" role="status">{report ? stage(report) : busy ? "Reading the file" : "–"}</p>
      {error && !busy && <ErrorNote error={error} retry={reload} />}
      <div class="halves">
        <div class="stack">
          <dl class="counts">{Object.entries(figures).map(([name, value]) => <div key={name}><dt>{name}</dt><dd>{value}</dd></div>)}</dl>
          <figure class="histogram">{tokens && <Histogram {...tokens} />}</figure>
        </div>
        <div class="remarks" role="region" aria-label="Errors and findings" tabIndex={0}>{report && <Remarks {...report} />}</div>
      </div>
    </Card>
  );
}

function Remarks({ errors, num_errors, findings, notes, done }: DataReport) {
  return (
    <>
      {errors.map(({ line, message }, index) => <p key={index}><Badge of="critical">{line ? `Line ${line}` : "File"}</Badge> {message}</p>)}
      {num_errors > errors.length && <p class="muted">and {plural(num_errors - errors.length, "more error")}</p>}
      {findings?.map((finding, index) => <p key={index}><Badge of={finding.severity} /> {finding.message} <span class="muted">{finding.advice}</span></p>)}
      {notes.map((note) => <p key={note}>{note}</p>)}
      {!num_errors && !findings?.length && <p class="muted">{done ? "No errors, duplicates, leakage or contradictions." : "Looking for duplicates, leakage, contradictions and the like."}</p>}
    </>
  );
}

/** A bar for each count, all equally wide; those with rows that are cut, and the mark where, in amber. */
function Histogram({ edges, counts, max_length, median, p95, max }: NonNullable<DataReport["tokens"]>) {
  const most = Math.max(...counts, 1);
  const place = edges.findLastIndex((edge) => edge <= max_length);
  const [from = 0, to = from + 1] = edges.slice(place, place + 2);
  const mark = max_length < max ? place + (max_length - from) / (to - from) : null;
  return (
    <>
      <svg viewBox={`0 0 ${counts.length} 100`} preserveAspectRatio="none" role="img" aria-label={`Lengths of rows: half have up to ${median} tokens, 95 % up to ${p95}, the longest ${max}.`}>
        {counts.map((count, index) => (
          <rect key={index} x={index + 0.06} width={0.88} y={100 - (96 * count) / most} height={(96 * count) / most} class={(edges[index + 1] ?? 0) - 1 > max_length ? "cut" : ""}>
            <title>{`${number(edges[index])} to ${number((edges[index + 1] ?? 0) - 1)} tokens: ${plural(count, "row")}`}</title>
          </rect>
        ))}
        {mark !== null && <line x1={mark} x2={mark} y1="0" y2="100" />}
      </svg>
      <figcaption>
        <span>{number(edges[0])}</span>
        <span>{mark === null ? `no row is over max_length ${number(max_length)}` : `cut at max_length ${number(max_length)}`}</span>
        <span>{number(edges.at(-2))} to {number(max)} tokens</span>
      </figcaption>
    </>
  );
}
