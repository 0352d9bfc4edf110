// Of pages that are opened from a disk: browsers start no workers there, and the search runs in a
// frame in place of one.
class FrameWorker extends EventTarget {
  constructor(url) {
    super();
    const frame = document.createElement("iframe");
    frame.hidden = true;
    const loaded = new Promise((resolve) => frame.addEventListener("load", resolve));
    frame.srcdoc = `<script src="${new URL(url, document.baseURI)}"></script>`;
    document.body.append(frame);
    this.inside = loaded.then(() => {
      const answer = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      frame.contentWindow.postMessage = answer;
      return frame.contentWindow;
    });
  }

  postMessage(data) {
    this.inside.then((inside) => inside.dispatchEvent(new MessageEvent("message", { data })));
  }
}

if (location.protocol === "file:") window.Worker = FrameWorker;
