"use strict";
// Browsers start no worker for a page that lies on a disk. There the search's runs in a hidden frame of the
// page instead, so that the site can be searched without a server; the theme's own way asks the network.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(address) {
      super();
      const inside = `
        postMessage = (data) => frameElement.worker.dispatchEvent(new MessageEvent("message", { data }));
        importScripts = (...addresses) => addresses.reduce((before, src) => before.then(() => new Promise((done, fail) =>
          document.head.append(Object.assign(document.createElement("script"), { src, onload: done, onerror: fail })))),
          Promise.resolve());`;
      const frame = document.createElement("iframe");
      Object.assign(frame, { hidden: true, worker: this });
      frame.srcdoc = `<script>${inside}</script><script src="${new URL(address, document.baseURI)}"></script>`;
      this.frame = frame;
      this.ready = new Promise((done) => frame.addEventListener("load", done));
      document.documentElement.append(frame);
    }
    postMessage(data) {
      const send = () => this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data }));
      this.ready.then(send);
    }
    terminate() {
      this.frame.remove();
    }
  };
}
