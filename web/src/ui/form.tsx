// Labelled controls. A hint or error below is tied to its control.
import type { ComponentChildren, TargetedEvent } from "preact";
import { useId } from "preact/hooks";

interface About {
  label: ComponentChildren;
  hint?: ComponentChildren;
  error?: string | null | undefined;
  /** Label for screen readers only. */
  quiet?: boolean;
}
type Tied = { id: string; "aria-describedby": string | undefined; "aria-invalid": boolean | undefined };

/** A label, a control made by `children` (give it the attributes it is handed), a hint and an error. */
export function Field({ label, hint, error, quiet, children }: About & { children: (tied: Tied) => ComponentChildren }) {
  const id = useId();
  const below = [hint && `${id}-hint`, error && `${id}-error`].filter(Boolean).join(" ");
  return (
    <div class="field">
      <label for={id} class={quiet ? "sr-only" : undefined}>{label}</label>
      {children({ id, "aria-describedby": below || undefined, "aria-invalid": error ? true : undefined })}
      {hint && <p id={`${id}-hint`} class="hint">{hint}</p>}
      {error && <p id={`${id}-error`} class="field-error">{error}</p>}
    </div>
  );
}

/** Attributes that controls hand on. */
interface Native {
  class?: string;
  placeholder?: string;
  disabled?: boolean;
  spellcheck?: boolean;
  onKeyDown?: (event: KeyboardEvent) => void;
}
type TextProps = About & Native & { value: string; onInput: (value: string) => void; type?: "text" | "search"; maxLength?: number; list?: string; rows?: number };

/** A line of text; with `rows`, several. */
export function TextField({ label, hint, error, quiet, value, onInput, rows, ...rest }: TextProps) {
  const changed = (event: TargetedEvent<HTMLInputElement | HTMLTextAreaElement>) => onInput(event.currentTarget.value);
  return (
    <Field {...{ label, hint, error, quiet }}>
      {(tied) => (rows ? <textarea {...rest} {...tied} rows={rows} value={value} onInput={changed} /> : <input {...rest} {...tied} value={value} onInput={changed} />)}
    </Field>
  );
}

type NumberProps = About & { value: number | null; onChange: (value: number | null) => void };

/** A number; null when it is empty or not one. */
export function NumberField({ label, hint, error, quiet, value, onChange, ...rest }: NumberProps & Native & { min?: number; max?: number; step?: number | "any" }) {
  const changed = (event: TargetedEvent<HTMLInputElement>) => {
    const given = event.currentTarget.valueAsNumber;
    onChange(Number.isNaN(given) ? null : given);
  };
  return (
    <Field {...{ label, hint, error, quiet }}>
      {(tied) => <input type="number" step="any" inputMode="decimal" {...rest} {...tied} value={value ?? ""} onInput={changed} />}
    </Field>
  );
}

type Option = { value: string; label: string; disabled?: boolean };
type SelectProps = About & { value: string; options: readonly (string | Option)[]; onChange: (value: string) => void };

export function Select({ label, hint, error, quiet, value, options, onChange, ...rest }: SelectProps & Native) {
  const shown = options.map((option): Option => (typeof option === "string" ? { value: option, label: option } : option));
  return (
    <Field {...{ label, hint, error, quiet }}>
      {(tied) => (
        <select {...rest} {...tied} value={value} onChange={(event) => onChange(event.currentTarget.value)}>
          {shown.map((one) => <option key={one.value} value={one.value} disabled={one.disabled} selected={one.value === value}>{one.label}</option>)}
        </select>
      )}
    </Field>
  );
}

/** A checkbox or switch with its words beside it. */
export function Check({ label, checked, onChange, disabled }: { label: ComponentChildren; checked: boolean; onChange: (on: boolean) => void; disabled?: boolean }) {
  return (
    <label class="check">
      <input type="checkbox" disabled={disabled} checked={checked} onChange={(event) => onChange(event.currentTarget.checked)} />
      <span>{label}</span>
    </label>
  );
}

type SegmentsProps<T> = { label: string; value: T; options: readonly { value: T; label: ComponentChildren }[]; onChange: (value: T) => void };

/** One of a few, side by side; each is a button that says whether it is pressed. */
export function Segments<T extends string>({ label, value, options, onChange }: SegmentsProps<T>) {
  return (
    <div class="segments" role="group" aria-label={label}>
      {options.map((option) => (
        <button key={option.value} type="button" aria-pressed={option.value === value} onClick={() => onChange(option.value)}>
          {option.label}
        </button>
      ))}
    </div>
  );
}
