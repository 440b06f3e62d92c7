// Rows of the training file as the model will see them, what it learns to write marked.
import { get } from "../../api/client";
import { setQuery, useQuery } from "../../router";
import { Button, Card, ErrorNote, useLoad } from "../../ui";
import { number, plural } from "../../ui/format";
import type { Looked } from "./report";
import { settled } from "./report";

const PAGE = 5;

export function Preview({ file, model, max_length }: Looked) {
  const row = Math.max(0, Math.floor(Number(useQuery("row")) || 1) - 1);
  const offset = row - (row % PAGE);
  const load = async (signal: AbortSignal) => {
    await settled();
    return { file, offset, ...(await get("/api/files/{file_id}/rendered", { file_id: file, model, offset, limit: PAGE, max_length }, signal)) };
  };
  const { data, error, busy, reload } = useLoad(load, [file, model, offset, max_length]);
  const total = data?.file === file ? data.total : 0;
  const shown = data?.file === file && data.offset === offset ? data.data[row - offset] : undefined;
  const go = (to: number) => setQuery({ row: to ? to + 1 : null });
  return (
    <Card
      title="As the model will see it"
      actions={
        <>
          <span class="muted small">Row {number(row + 1)}{total > 0 && ` of ${number(total)}`}</span>
          <Button small disabled={row === 0} onClick={() => go(row - 1)}>Previous</Button>
          <Button small disabled={row + 1 >= total} onClick={() => go(row + 1)}>Next</Button>
        </>
      }
    >
      {error && <ErrorNote error={error} retry={reload} />}
      <pre class={busy ? "rendered stale" : "rendered"} role="region" aria-label="Row with its target tokens marked" tabIndex={0}>
        {shown?.error && <span class="worse">Line {shown.line}: {shown.error}</span>}
        {shown?.spans.map((span, index) =>
          span.is_target ? <mark key={index}><span class="sr-only">[target: </span>{span.text}<span class="sr-only">]</span></mark> : span.text,
        )}
        {shown?.truncated && <span class="cut-here">cut here: max_length</span>}
      </pre>
      <p class="muted small legend">
        <mark>Marked</mark>
        <span>{shown && !shown.error ? `${plural(shown.num_targets, "target token")} of ${number(shown.num_tokens)}` : "target tokens"}: what the loss is taken over</span>
      </p>
    </Card>
  );
}
