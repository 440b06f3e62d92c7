// What the form asks for, read from the page's URL (hyperparameters by their names), and the same in code.
import type { CreateJob, HyperparameterInfo } from "../../api/client";
import { query } from "../../router";

export const VALIDATIONS = ["none", "file", "split"] as const;

export function validation() {
  const given = query.value;
  return VALIDATIONS.find((how) => how === given.get("validation")) ?? (given.has("validation_file") ? "file" : given.has("training_split") ? "split" : "none");
}

/** Return the body of POST /v1/fine_tuning/jobs. */
export function request(table: readonly HyperparameterInfo[], model: string): CreateJob {
  const how = validation();
  const given = (name: string) => query.value.get(name) || undefined;
  const used = table.filter(({ name }) => given(name) && (name !== "training_split" || how === "split"));
  const { seed, ...hyperparameters } = Object.fromEntries(used.map((info) => [info.name, typed(info, given(info.name)!)]));
  return {
    model: given("model") ?? model,
    training_file: given("training_file") ?? "",
    validation_file: how === "file" ? given("validation_file") : undefined,
    suffix: given("suffix"),
    seed: seed as number | undefined,
    method: Object.keys(hyperparameters).length ? { type: "supervised", supervised: { hyperparameters } } : undefined,
  };
}

/** Text as the value it stands for; what stands for none goes as it is, so that the server says what it accepts. */
function typed({ kind, nullable }: HyperparameterInfo, text: string): unknown {
  if (nullable && /^\s*(null|none)\s*$/i.test(text)) return null;
  if (kind === "bool" && /^(true|false)$/.test(text)) return text === "true";
  const value = text.trim() ? Number(text) : NaN;
  return kind !== "str" && Number.isFinite(value) ? value : text;
}
