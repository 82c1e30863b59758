// Sends 20 requests at once when the form of /parallel is submitted. Without this script, the form
// sends one.
const form = document.getElementById("burst");

form?.addEventListener("submit", async (event) => {
  event.preventDefault();
  const button = form.querySelector("button");
  const answered = document.getElementById("answered");
  const total = 20;
  let done = 0;
  // The response is a redirect, which is not followed: the counters are loaded once, at the end.
  const send = async () => {
    const response = await fetch(form.action, { method: "POST", redirect: "manual" });
    if (response.type === "opaqueredirect") answered.textContent = ++done;
  };
  delete form.dataset.finished;
  button.disabled = true;
  answered.textContent = 0;
  try {
    // Without a cookie, each request would get a session of its own: let the first one create it.
    await send();
    await Promise.all(Array.from({ length: total - 1 }, send));
    const page = await (await fetch(location.pathname)).text();
    const counters = new DOMParser().parseFromString(page, "text/html");
    for (const id of ["atomic", "overwritten", "session"]) {
      document.getElementById(id).replaceWith(counters.getElementById(id));
    }
    form.dataset.finished = done;
  } finally {
    button.disabled = false;
  }
});
