// Dialogs, questions and messages. <Overlays/> stands once in the app.
import { signal } from "@preact/signals";
import type { ComponentChildren } from "preact";
import { useId, useLayoutEffect, useRef } from "preact/hooks";
import { Button } from "./basic";

interface DialogProps {
  title: string;
  onClose: () => void;
  /** Buttons at the foot. */
  actions?: ComponentChildren;
  children?: ComponentChildren;
}

/** A modal dialog, open for as long as it is rendered. */
export function Dialog({ title, onClose, actions, children }: DialogProps) {
  const ref = useRef<HTMLDialogElement>(null);
  const id = useId();
  useLayoutEffect(() => {
    const [dialog, opener] = [ref.current!, document.activeElement as HTMLElement | null];
    dialog.showModal();
    return () => {
      dialog.close();
      // The focus goes back, to the heading where its control is gone; after a tick, so that a button is no longer busy.
      setTimeout(() => {
        opener?.focus();
        if (document.activeElement === document.body) document.querySelector("h1")?.focus();
      });
    };
  }, []);
  const cancel = (event: Event) => {
    event.preventDefault();
    onClose();
  };
  return (
    <dialog ref={ref} class="dialog" aria-labelledby={id} onCancel={cancel}>
      <h2 id={id}>{title}</h2>
      {children}
      {actions && <div class="actions end">{actions}</div>}
    </dialog>
  );
}

interface Question {
  title: string;
  body?: ComponentChildren;
  /** What the button that says yes says. */
  action: string;
  danger?: boolean;
}

const asked = signal<(Question & { answer: (yes: boolean) => void }) | null>(null);
const messages = signal<{ id: number; text: string; bad: boolean }[]>([]);
const heard = signal("");
let count = 0;

/** Ask; the promise is true for yes. */
export function confirm(question: Question): Promise<boolean> {
  return new Promise((resolve) => {
    asked.value = {
      ...question,
      answer: (yes) => {
        asked.value = null;
        resolve(yes);
      },
    };
  });
}

/** Show a message for some seconds; screen readers say it. */
export function toast(text: string, bad = false): void {
  const id = ++count;
  messages.value = [...messages.value, { id, text, bad }];
  announce(text);
  setTimeout(() => (messages.value = messages.value.filter((message) => message.id !== id)), bad ? 10_000 : 4000);
}

/** Have screen readers say something that others see. */
export function announce(text: string): void {
  heard.value = text;
}

export function Overlays() {
  const question = asked.value;
  return (
    <>
      {question && (
        <Dialog
          title={question.title}
          onClose={() => question.answer(false)}
          actions={<><Button onClick={() => question.answer(false)}>Cancel</Button><Button kind={question.danger ? "danger" : "primary"} onClick={() => question.answer(true)}>{question.action}</Button></>}
        >
          {question.body && <div>{question.body}</div>}
        </Dialog>
      )}
      <div class="toasts" aria-hidden="true">
        {messages.value.map((message) => <p key={message.id} class={message.bad ? "toast bad" : "toast"}>{message.text}</p>)}
      </div>
      <p class="sr-only" role="status" aria-live="polite">{heard.value}</p>
    </>
  );
}
