// A training or validation file: one that is on the server, or a new one dropped or chosen from disk.
import { useEffect, useRef, useState } from "preact/hooks";
import { isAbort, upload } from "../../api/client";
import type { FileOverviewList } from "../../api/client";
import { setQuery, useQuery } from "../../router";
import { Button, ErrorNote, Progress, Select } from "../../ui";
import type { Loaded } from "../../ui";
import { ago, bytes } from "../../ui/format";

type FilePickerProps = { label: string; param: "training_file" | "validation_file"; files: Loaded<FileOverviewList>; error: string | null };

export function FilePicker({ label, param, files, error }: FilePickerProps) {
  const chosen = useQuery(param) ?? "";
  const [sent, setSent] = useState<{ name: string; share: number } | null>(null);
  const [failed, setFailed] = useState<string | null>(null);
  const [over, setOver] = useState(false);
  const sending = useRef<AbortController | null>(null);
  useEffect(() => () => sending.current?.abort(), []);

  const send = async (file: (Blob & { name: string }) | undefined) => {
    if (!file) return;
    sending.current?.abort();
    const [stop, { name }] = [(sending.current = new AbortController()), file];
    setFailed(null);
    setSent({ name, share: 0 });
    try {
      const { id } = await upload(file, (share) => stop.signal.aborted || setSent({ name, share }), stop.signal);
      setQuery({ [param]: id });
      files.reload();
    } catch (problem) {
      if (!isAbort(problem)) setFailed(`${name}: ${(problem as Error).message}`);
    }
    if (sending.current === stop) setSent(null);
  };
  const drag = (isOver: boolean) => (event: DragEvent) => {
    event.preventDefault();
    setOver(isOver);
    if (event.type === "drop") void send(event.dataTransfer?.files[0]);
  };
  const pick = ({ currentTarget: input }: { currentTarget: HTMLInputElement }) => {
    void send(input.files?.[0]);
    input.value = ""; // so that the same file, mended, can be chosen again
  };
  const here = files.data?.data ?? [];
  const known = here.find(({ id }) => id === chosen);
  const first = { value: "", label: files.data && !here.length ? "No file uploaded yet" : "Choose an uploaded file" };
  const options = here.map((file) => ({ value: file.id, label: `${shortened(file.filename)} · ${bytes(file.bytes)} · ${ago(file.created_at)}` }));
  return (
    <div class="stack">
      <Select
        label={label} value={chosen} error={error} hint={known && shortened(known.filename) !== known.filename && known.filename}
        options={[first, ...(chosen && !known ? [chosen] : []), ...options]} onChange={(id) => setQuery({ [param]: id })}
      />
      <div class={over ? "drop over" : "drop"} onDragOver={drag(true)} onDragLeave={drag(false)} onDrop={drag(false)}>
        <span class="clip grow muted" title={sent?.name}>{sent ? `${sent.share < 1 ? "Sending" : "Checking"} ${sent.name}` : "Drop a JSONL file here"}</span>
        {sent && <Button small onClick={() => sending.current?.abort()}>Stop</Button>}
        {!sent && <label class="button small"><input type="file" class="sr-only" onChange={pick} />Upload a file<span class="sr-only"> as {label.toLowerCase()}</span></label>}
        {sent && <Progress label={`Upload of ${sent.name}`} share={sent.share < 1 ? sent.share : null} />}
      </div>
      {(failed ?? (files.error && !files.data)) && <ErrorNote error={failed ?? files.error!} />}
    </div>
  );
}

/** The middle of a long name is left out: its end tells files apart. */
const shortened = (name: string): string => (name.length > 56 ? `${name.slice(0, 36)}…${name.slice(-18)}` : name);
