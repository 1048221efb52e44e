// The key of a server that wants one.
//
// Kept for this tab only (sessionStorage): a key in localStorage would lie on the disk of a computer that others use.

const KEPT_AS = "linnet-key";
let key = read();
let asking = null;

function read() {
  try {
    return sessionStorage.getItem(KEPT_AS) ?? "";
  } catch {
    return "";
  }
}

/** The headers that show the key, if there is one. */
export function keyHeaders() {
  return key ? { Authorization: "Bearer " + key } : {};
}

/** Ask for the key; true once one was given, false where the question was put aside. Asked twice at once, it asks once. */
export function askForKey() {
  asking ??= ask().finally(() => { asking = null; });
  return asking;
}

function ask() {
  const dialog = document.getElementById("key");
  const input = dialog.querySelector("input");
  dialog.querySelector("p").textContent = key
    ? "The server did not accept this key."
    : "This server asks for a key: the one that it was started with (--api-key).";
  input.value = "";
  dialog.showModal();
  return new Promise((resolve) => {
    const form = dialog.querySelector("form");
    const given = (event) => {
      event.preventDefault();
      const value = input.value.trim();
      if (!value) return;
      key = value;
      try {
        sessionStorage.setItem(KEPT_AS, key);
      } catch {
        // Then until the page is loaded again.
      }
      dialog.close("given");
    };
    form.addEventListener("submit", given);
    dialog.addEventListener(
      "close",
      () => {
        form.removeEventListener("submit", given);
        resolve(dialog.returnValue === "given");
        dialog.returnValue = "";
      },
      { once: true },
    );
  });
}
