// Rows of the training file as the model will see them, what it learns to write marked.
import { get } from "../../api/client";
import { setQuery, useQuery } from "../../router";
import { Button, Card, ErrorNote, useLoad } from "../../ui";
import { number, plural } from "../../ui/format";
import { settled } from "./report";
import type { Subject } from "./report";

const PAGE = 5;

export function Preview({ file, model, max_length }: Subject) {
  const row = Math.max(0, Math.floor(Number(useQuery("row")) || 1) - 1);
  const offset = row - (row % PAGE);
  const load = async (signal: AbortSignal) => {
    await settled();
    return { file, offset, ...(await get("/api/files/{file_id}/rendered", { file_id: file, model, offset, limit: PAGE, max_length }, signal)) };
  };
  const { data, error, busy, reload } = useLoad(load, [file, model, offset, max_length]);
  const total = data?.file === file ? data.total : 0;
  const shown = total && data?.offset === offset ? data.data[row - offset] : undefined;
  const to = (next: number, label: string) => <Button small disabled={next < 0 || next >= total} onClick={() => setQuery({ row: next + 1 })}>{label}</Button>;
  const place = <span class="muted small">Row {number(row + 1)}{total > 0 && ` of ${number(total)}`}</span>;
  return (
    <Card title="As the model will see it" actions={<>{place}{to(row - 1, "Previous")}{to(row + 1, "Next")}</>}>
      {error && <ErrorNote error={error} retry={reload} />}
      <pre key={row} class={busy ? "rendered stale" : "rendered"} role="region" aria-label="Row with its target tokens marked" tabIndex={0}>
        {shown?.error && <span class="worse">Line {shown.line}: {shown.error}</span>}
        {shown?.spans.map(({ text, is_target }, index) =>
          is_target ? <mark key={index}><span class="sr-only">[target: </span>{text}<span class="sr-only">]</span></mark> : text,
        )}
        {shown?.truncated && <span class="cut-here">cut here: max_length</span>}
      </pre>
      <p class="muted small"><mark>Marked</mark> {shown?.num_tokens ? `${plural(shown.num_targets, "target token")} of ${number(shown.num_tokens)}` : "target tokens"}{shown?.truncated && ", after the cut"}: what the loss is taken over</p>
    </Card>
  );
}
