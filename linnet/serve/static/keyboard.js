// The keys of the whole page: Esc stops, Ctrl+Up edits the last message, / goes to where one types.
//
// Enter and Shift+Enter are the composer's. No key does anything while a dialog is open.

/** @param {{stop: () => void, editLast: () => void, focus: () => void}} actions */
export function listenToKeys({ stop, editLast, focus }) {
  document.addEventListener("keydown", (event) => {
    if (event.defaultPrevented || document.querySelector("dialog[open]")) return;
    const typing = event.target.matches("input, textarea, select");
    if (event.key === "Escape") stop();
    else if (event.key === "ArrowUp" && (event.ctrlKey || event.metaKey)) editLast();
    else if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) focus();
    else return;
    event.preventDefault();
  });
}
