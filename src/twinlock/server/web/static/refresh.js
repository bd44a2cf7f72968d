// Fetches this page again every few seconds and swaps its content; a hidden page waits until it is looked at.
"use strict";

const WAIT_MS = 3000;

async function refresh() {
  if (!document.hidden && !window.getSelection().toString() && !document.querySelector("details[open]")) {
    try {
      const answer = await fetch(window.location.href, { redirect: "manual", cache: "no-store" });
      if (answer.ok) {
        const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
        const content = fresh.getElementById("content");
        document.getElementById("content").replaceWith(content);
        document.body.classList.remove("stale");
      } else {
        window.location.reload(); // the session has ended: the server shows the login
        return;
      }
    } catch (problem) {
      console.warn("the server does not answer", problem);
      document.body.classList.add("stale");
    }
  }
  window.setTimeout(refresh, WAIT_MS);
}

window.setTimeout(refresh, WAIT_MS);
