import { Page } from "../ui";

export default function JobScreen() {
  return <Page title="Job" />;
}
