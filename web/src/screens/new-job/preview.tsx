// Rows of the training file as the model will see them, what it learns to write marked.
import { useRef, useState } from "preact/hooks";
import { get } from "../../api/client";
import type { RenderedRow } from "../../api/client";
import { setQuery, useQuery } from "../../router";
import { Button, Card, ErrorNote, useLoad } from "../../ui";
import { number } from "../../ui/format";
import { settled } from "./report";
import type { Subject } from "./report";

const PAGE = 5;

/** One row of `file`; mounted anew for another file, model or max_length. */
export function Preview({ file: file_id, model, max_length }: Subject) {
  const line = Math.max(1, Math.floor(Number(useQuery("row"))) || 1);
  const seen = useRef(new Map<number, RenderedRow>());
  const [total, setTotal] = useState(0);
  const load = async (signal: AbortSignal) => {
    // Of long lines fewer come than were asked for; then from this one on.
    for (const offset of [line - 1 - ((line - 1) % PAGE), line - 1]) {
      if (seen.current.has(line)) break;
      await settled();
      const page = await get("/api/files/{file_id}/rendered", { file_id, model, offset, limit: PAGE, max_length }, signal);
      for (const row of page.data) seen.current.set(row.line, row);
      setTotal(page.total);
    }
    return seen.current.get(line) ?? null;
  };
  const { data: row, error, busy, reload } = useLoad(load, [line]);
  const to = (next: number, label: string) => <Button small disabled={next < 1 || next > total} onClick={() => setQuery({ row: next })}>{label}</Button>;
  const place = <span class="muted small place">Row {number(line)}{total > 0 && ` of ${number(total)}`}</span>;
  return (
    <Card title="As the model will see it" actions={<>{place}{to(line - 1, "Previous")}{to(line + 1, "Next")}</>}>
      {error && <ErrorNote error={error} retry={reload} />}
      {(row || !error) && (
        <pre key={row?.line} class="rendered" aria-busy={busy} role="region" aria-label="Row with its target tokens marked" tabIndex={0}>
          {!row && <span class="muted">{busy ? "Rendering rows …" : `The file has no line ${number(line)}.`}</span>}
          {row?.error && <span class="worse">Line {row.line}: {row.error}</span>}
          {row?.spans.map(({ text, is_target }, index) =>
            is_target ? <mark key={index}><span class="sr-only">[target: </span>{text}<span class="sr-only">]</span></mark> : text,
          )}
          {row?.truncated && <span class="cut-here">cut here, at max_length</span>}
        </pre>
      )}
      <p class="muted small"><mark>Marked</mark> target tokens, what is learned: {row ? `${number(row.num_targets)} of ${number(row.num_tokens)}` : "–"}{row?.truncated && ", then cut"}</p>
    </Card>
  );
}
