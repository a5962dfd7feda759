// What htmx does not do by itself: no asking in a hidden tab, and saying so when the page grows old.
"use strict";

(() => {
  const bar = document.getElementById("stale");

  const old = (why) => {
    if (!bar.hidden) return;
    const since = new Date().toISOString().slice(11, 19);
    bar.textContent = `Not up to date since ${since} UTC: ${why} This page tries again by itself.`;
    bar.hidden = false;
  };

  document.addEventListener("htmx:before:request", (event) => {
    if (document.hidden) event.preventDefault();
  });
  document.addEventListener("htmx:response:error", (event) => {
    const told = new DOMParser().parseFromString(event.detail.ctx.text ?? "", "text/html");
    old(told.querySelector("[role=alert]")?.textContent.trim() || "docsum cannot tell at the moment.");
  });
  document.addEventListener("htmx:error", () => old("docsum does not answer."));
  document.addEventListener("htmx:after:request", (event) => {
    if (event.detail.ctx.response.status < 400) bar.hidden = true;
  });
})();
