// What Models and Files share: who uses a thing, and its deletion.
import type { ComponentChildren } from "preact";
import { useState } from "preact/hooks";
import type { UsedBy } from "../api/client";
import { Link } from "../router";
import { Button, Dialog, ErrorNote, toast } from "../ui";
import { words } from "../ui/format";
import "./library.css";

const FEW = 3;

/** Links to jobs, each with what the thing is to it. */
export function Users({ of, all }: { of: readonly UsedBy[]; all?: boolean }) {
  const shown = all ? of : of.slice(0, FEW);
  return (
    <ul class="users">
      {shown.map(({ id, role, status }) => <li key={id + role}><span class="muted small">{role}{all && `, ${words(status).toLowerCase()}`}</span> <Link to={`/jobs/${id}`} class="mono" title={id}>{id}</Link></li>)}
      {of.length > shown.length && <li class="muted small">and {of.length - shown.length} more</li>}
      {!of.length && <li class="muted">–</li>}
    </ul>
  );
}

type DeletingProps = { name: string; onDelete: () => Promise<unknown>; onDone: () => Promise<void>; onClose: () => void; children: ComponentChildren };

/** Asks before something is deleted; why the server refuses is said in the dialog. */
export function Deleting({ name, onDelete, onDone, onClose, children }: DeletingProps) {
  const [error, setError] = useState<Error | null>(null);
  const remove = async () => {
    try {
      await onDelete();
    } catch (refused) {
      return setError(refused as Error);
    }
    toast(`${name} is deleted.`);
    await onDone();
    onClose();
  };
  return (
    <Dialog title={`Delete ${name}?`} onClose={onClose} actions={<><Button onClick={onClose}>Cancel</Button><Button kind="danger" onClick={remove}>Delete</Button></>}>
      {children}
      {error && <ErrorNote error={error} />}
    </Dialog>
  );
}
