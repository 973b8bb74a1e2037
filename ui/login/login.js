// The login page: takes the key behind the address's #, or a token from the form.
const NAME = "steerway-secret";
const OTHER_TABS_MS = 300; // before the form is shown
const state = document.getElementById("state");
const form = document.getElementById("form");
const within = document.getElementById("within");
let given = new URLSearchParams();

function goOn() {
  const page = given.get("page") || "/";
  location.replace(/^\/[^/\\]/.test(page) ? page : "/");
}

function show(text, bad) {
  state.textContent = text;
  state.className = bad ? "bad" : "";
  form.hidden = false;
}

async function logIn(body) {
  let answer, said;
  try {
    answer = await fetch("/login", { method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" } });
    said = await answer.json();
  } catch {
    show("The console does not answer. Try again.", true);
    return;
  }
  if (answer.ok) {
    sessionStorage.setItem(NAME, said.secret);
    goOn();
  } else {
    const text = String(said.detail || "That was refused.");
    show(text[0].toUpperCase() + text.slice(1) + ".", true);
  }
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const button = form.querySelector("button");
  button.disabled = true;
  await logIn({ token: document.getElementById("token").value.trim() });
  button.disabled = false;
});

async function isGood(secret) {
  if (!secret) return false;
  return (await fetch("/login/session", { headers: { "X-Steerway-Secret": secret } })).status === 204;
}

// Another tab of this browser may be logged in: it tells a page of the same address the secret.
function askOtherTabs() {
  const channel = new BroadcastChannel(NAME);
  channel.addEventListener("message", async ({ data }) => {
    if (await isGood(data.secret)) {
      sessionStorage.setItem(NAME, data.secret);
      goOn();
    }
  });
  channel.postMessage({ wanted: true });
}

document.getElementById("leave").addEventListener("click", async () => {
  await fetch("/logout", { method: "POST", headers: { "X-Steerway-Secret": sessionStorage.getItem(NAME) } });
  sessionStorage.removeItem(NAME);
  location.reload();
});

async function begin() {
  within.hidden = true;
  given = new URLSearchParams(location.hash.slice(1));
  if (given.get("key")) {
    history.replaceState(null, "", "/login"); // a key must not stay in the address bar, where it would be copied
    state.textContent = "Logging in …";
    logIn({ key: given.get("key") });
  } else if (await isGood(sessionStorage.getItem(NAME))) {
    within.hidden = false;
  } else {
    askOtherTabs();
    setTimeout(() => show("This console needs a login.", false), OTHER_TABS_MS);
  }
}

// A link that is pasted into this very page changes only what stands behind its #.
window.addEventListener("hashchange", begin);
begin();
