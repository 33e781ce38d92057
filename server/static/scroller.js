// Keeps the newest words in sight, unless the reader scrolled up to read.

const NEAR = 40; // px from the end that count as there

export class Scroller {
  constructor(area, button) {
    this.area = area;
    this.button = button;
    this.isStuck = true;
    this.top = 0;
    area.addEventListener("scroll", () => this.look(), { passive: true });
    button.addEventListener("click", () => {
      this.toNewest();
      area.focus({ preventScroll: true });
    });
    new ResizeObserver(() => this.follow()).observe(area);
  }

  /** See whether the reader has moved. */
  look() {
    const { scrollTop, scrollHeight, clientHeight } = this.area;
    const isNear = scrollHeight - scrollTop - clientHeight < NEAR;
    if (isNear) this.isStuck = true;
    else if (scrollTop < this.top) this.isStuck = false;
    this.top = scrollTop;
    this.button.hidden = isNear || this.isStuck;
  }

  /** Something was added. */
  follow() {
    this.look();
    if (!this.isStuck) return;
    this.area.scrollTop = this.area.scrollHeight;
    this.top = this.area.scrollTop;
  }

  toNewest() {
    this.isStuck = true;
    this.button.hidden = true;
    this.follow();
  }
}
