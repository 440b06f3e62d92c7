// Files sent to the server: dropped or chosen from disk. How far they are, and what is wrong with them, is said in place.
import { useEffect, useRef, useState } from "preact/hooks";
import { isAbort, upload } from "../api/client";
import { Button, ErrorNote, Progress, toast } from "../ui";

/** With a `role` it takes one file, as that; `onDone` hears the id of each file that is there. */
export function Upload({ role, onDone }: { role?: string; onDone: (id: string) => void }) {
  const [sent, setSent] = useState<{ name: string; share: number } | null>(null);
  const [failed, setFailed] = useState<string[]>([]);
  const [over, setOver] = useState(false);
  const sending = useRef<AbortController | null>(null);
  useEffect(() => () => void (role && sending.current?.abort()), []); // files of no role go on being sent

  const send = async (files: readonly File[]) => {
    sending.current?.abort();
    const stop = (sending.current = new AbortController());
    setFailed([]);
    for (const file of role ? files.slice(0, 1) : files) {
      const { name } = file;
      const show = (share: number) => stop.signal.aborted || setSent({ name, share });
      show(0);
      try {
        const { id } = await upload(file, show, stop.signal);
        toast(`${name} is uploaded.`);
        onDone(id);
      } catch (problem) {
        if (isAbort(problem)) break;
        setFailed((before) => [...before, `${name}: ${(problem as Error).message}`]);
      }
    }
    if (sending.current === stop) setSent(null);
  };
  const drag = (isOver: boolean) => (event: DragEvent) => {
    event.preventDefault();
    setOver(isOver);
    if (event.type === "drop") void send([...event.dataTransfer!.files]);
  };
  const pick = ({ currentTarget: input }: { currentTarget: HTMLInputElement }) => {
    void send([...input.files!]);
    input.value = ""; // so that the same file, mended, can be chosen again
  };
  return (
    <div class={over ? "drop over" : "drop"} onDragOver={drag(true)} onDragLeave={drag(false)} onDrop={drag(false)}>
      <span class="clip grow muted" title={sent?.name}>{sent ? `${sent.share < 1 ? "Sending" : "Checking"} ${sent.name}` : `Drop ${role ? "a JSONL file" : "JSONL files"} here`}</span>
      {sent && <Button small onClick={() => sending.current?.abort()}>Stop</Button>}
      {!sent && <label class={role ? "button small" : "button primary"}><input type="file" class="sr-only" multiple={!role} onChange={pick} />Upload {role ? <>a file<span class="sr-only"> as {role}</span></> : "files"}</label>}
      {sent && <Progress label={`Upload of ${sent.name}`} share={sent.share < 1 ? sent.share : null} />}
      {failed.map((message) => <ErrorNote key={message} error={message} />)}
    </div>
  );
}
