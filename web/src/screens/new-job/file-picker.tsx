// A training or validation file: one that is on the server, or a new one dropped or chosen from disk.
import type { FileOverviewList } from "../../api/client";
import { setQuery, useQuery } from "../../router";
import { ErrorNote, Select } from "../../ui";
import type { Loaded } from "../../ui";
import { ago, bytes } from "../../ui/format";
import { Upload } from "../upload";

type FilePickerProps = { label: string; param: "training_file" | "validation_file"; files: Loaded<FileOverviewList>; error: string | null };

export function FilePicker({ label, param, files, error }: FilePickerProps) {
  const chosen = useQuery(param) ?? "";
  const done = (id: string) => {
    setQuery({ [param]: id });
    files.reload();
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
      <Upload role={label.toLowerCase()} onDone={done} />
      {files.error && !files.data && <ErrorNote error={files.error} />}
    </div>
  );
}

/** The middle of a long name is left out: its end tells files apart. */
const shortened = (name: string): string => (name.length > 56 ? `${name.slice(0, 36)}…${name.slice(-18)}` : name);
