// Runs in each page before Streamlit: adds the session's secret, which only pages of this address hold, to the stream
// and to uploads.
(() => {
  const NAME = "steerway-secret";
  const held = () => sessionStorage.getItem(NAME);
  const logIn = () => {
    const page = location.pathname + location.search;
    location.replace("/login#page=" + encodeURIComponent(page));
  };

  if (!held()) {
    window.stop(); // nothing of Streamlit is loaded before there is something to log in with
    logIn();
    return;
  }

  // A second tab has the cookie, and asks its neighbours for the secret.
  const channel = new BroadcastChannel(NAME);
  channel.addEventListener("message", ({ data }) => {
    if (data.wanted && held()) channel.postMessage({ secret: held() });
  });

  const check = async () => {
    const answer = await fetch("/login/session", { headers: { "X-Steerway-Secret": held() || "" } }).catch(() => null);
    if (answer && answer.status === 401) {
      sessionStorage.removeItem(NAME);
      logIn();
    }
  };

  const Plain = window.WebSocket;
  window.WebSocket = class extends Plain {
    constructor(url, protocols) {
      const own = new URL(url, location.href).host === location.host;
      super(url, own ? [protocols ?? []].flat().concat("steerway." + (held() || "")) : protocols ?? []);
      if (own) this.addEventListener("close", ({ wasClean }) => wasClean || check());
    }
  };

  // A file that is uploaded needs the secret, too. Streamlit sends it by XMLHttpRequest.
  const { open } = XMLHttpRequest.prototype;
  XMLHttpRequest.prototype.open = function (method, url, ...rest) {
    open.call(this, method, url, ...rest);
    const { host, pathname } = new URL(url, location.href);
    if (host === location.host && pathname.startsWith("/_stcore/upload_file/")) {
      this.setRequestHeader("X-Steerway-Secret", held() || "");
    }
  };
})();
