// An API page lists names with one sentence each. A click on it opens the signature and the rest.
for (const body of document.querySelectorAll(".doc-contents.first")) {
  if (!body.textContent.trim()) continue;
  const signature = body.parentElement.querySelector(":scope > .doc-signature");
  const sentence = body.querySelector(":scope > p");
  const details = document.createElement("details");
  const summary = document.createElement("summary");
  details.className = "api";
  summary.innerHTML = sentence ? sentence.innerHTML : "Documentation";
  if (sentence) sentence.remove();
  body.before(details);
  details.append(summary, ...(signature ? [signature, body] : [body]));
}

// A link to a name, or to one of its methods, opens its entry.
function openTarget() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  const object = target && target.closest(".doc-object");
  const own = object && object.querySelector(":scope > details.api");
  const details = own || (target && target.closest("details.api"));
  if (details && !details.open) {
    details.open = true;
    target.scrollIntoView();
  }
}
addEventListener("hashchange", openTarget);
openTarget();
