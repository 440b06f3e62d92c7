import { Page } from "../ui";

export default function NewJob() {
  return <Page title="New job" />;
}
