// One hyperparameter: empty is auto, shown as the value it becomes, with its reason.
import type { HyperparameterInfo, Resolution } from "../../api/client";
import { setQuery, useQuery } from "../../router";
import { Button, Field } from "../../ui";

export function Hyperparameter({ info: { name, ...info }, resolution, error }: { info: HyperparameterInfo; resolution: Resolution | null; error: string | null }) {
  const value = useQuery(name) ?? "";
  // A seed that is not given is drawn anew for each answer.
  const becomes = name === "seed" ? "drawn" : String((resolution ? resolution.resolved[name] : info.default) ?? "none");
  const reason = value ? "asked" : (resolution?.reasons[name] ?? "auto");
  const values = info.kind === "bool" ? ["true", "false"] : info.choices.filter((choice) => choice !== "auto");
  const control = { value, onInput: (event: { currentTarget: { value: string } }) => setQuery({ [name]: event.currentTarget.value }) };
  return (
    <Field label={<code>{name}</code>} hint={<><span class="reason">{reason}</span> {info.help} Accepted: {info.accepted}.</>} error={error}>
      {(tied) => (
        <div class={value ? "setting changed" : "setting"}>
          {values.length ? (
            <select {...tied} {...control}>
              <option value="">{becomes === "auto" ? becomes : `${becomes} (auto)`}</option>
              {values.map((choice) => <option key={choice} value={choice}>{choice}</option>)}
            </select>
          ) : (
            <input {...tied} {...control} placeholder={becomes} inputMode="decimal" autoComplete="off" spellcheck={false} />
          )}
          {value && <Button onClick={() => setQuery({ [name]: null })} aria-label={`Reset ${name} to auto`}>Reset</Button>}
        </div>
      )}
    </Field>
  );
}
